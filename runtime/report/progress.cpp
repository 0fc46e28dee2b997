#include "runtime/report/progress.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>

namespace headrace {

std::string format_duration(double seconds) {
  const auto total = static_cast<long long>(seconds + 0.5);
  char text[48];
  if (total >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", total / 3600, total / 60 % 60,
                  total % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", total / 60, total % 60);
  }
  return text;
}

Progress::Progress(int64_t total, bool quiet)
    : total_(total), quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}

std::string Progress::line(const ScheduleCounts& counts, int64_t failed) const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const int64_t done = counts.requests_done + failed;
  const double rate = seconds > 0 ? static_cast<double>(counts.generated_tokens) / seconds : 0.0;
  std::string text =
      fmt::format("{}{} requests, {} active, {} prompt + {} generated tokens, {:.1f} tok/s", done,
                  total_ >= 0 ? fmt::format("/{}", total_) : "", counts.active,
                  counts.prompt_tokens, counts.generated_tokens, rate);
  if (failed > 0) text += fmt::format(", {} failed", failed);
  if (total_ > done && done > 0) {
    const double left = seconds / static_cast<double>(done) * static_cast<double>(total_ - done);
    text += ", ETA " + format_duration(left);
  }
  return text;
}

void Progress::update(const ScheduleCounts& counts, int64_t failed) {
  if (quiet_) return;
  const auto interval =
      terminal_ ? std::chrono::milliseconds(250) : std::chrono::milliseconds(10000);
  if (Clock::now() - shown_ < interval) return;
  shown_ = Clock::now();
  if (terminal_) {
    std::fprintf(stderr, "\r\x1b[K%s", line(counts, failed).c_str());
    std::fflush(stderr);
    line_open_ = true;
  } else {
    spdlog::info(line(counts, failed));
  }
}

void Progress::finish(const ScheduleCounts& counts, int64_t failed) {
  if (line_open_) std::fputs("\r\x1b[K", stderr);
  line_open_ = false;
  if (quiet_) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  spdlog::info(
      "{} requests done, {} failed, {} prompt + {} generated tokens in {:.2f} s: {:.1f} generated "
      "tokens/s",
      counts.requests_done, failed, counts.prompt_tokens, counts.generated_tokens, seconds,
      seconds > 0 ? static_cast<double>(counts.generated_tokens) / seconds : 0.0);
}

}  // namespace headrace
