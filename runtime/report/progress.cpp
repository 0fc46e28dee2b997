#include "runtime/report/progress.h"

#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace headrace {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kLineInterval{250}, kFirstLog{2000}, kLogInterval{10000};

// Under mpirun standard error is a pipe to the terminal, whose width is not known.
size_t terminal_columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace

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

Progress::Progress(int64_t total, ProgressStyle style)
    : total_(total),
      style_(style),
      due_(start_ + (style == ProgressStyle::kLine ? kLineInterval : kFirstLog)) {}

// What matters most comes first: a narrow terminal cuts off the end.
std::string Progress::line(const ScheduleCounts& counts, int64_t failed) const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const int64_t done = counts.requests_done + failed;
  std::string text =
      fmt::format("{}{} requests", done, total_ >= 0 ? fmt::format(" of {}", total_) : "");
  if (failed > 0) text += fmt::format(" ({} failed)", failed);
  if (total_ > done && counts.requests_done > 0) {
    const double each = seconds / static_cast<double>(counts.requests_done);
    const double left = each * static_cast<double>(total_ - done);
    text += ", ETA " + format_duration(left);
  }
  return text + fmt::format(", {:.1f} tokens/s, {} active, {} prompt + {} generated tokens",
                            static_cast<double>(counts.generated_tokens) / seconds, counts.active,
                            counts.prompt_tokens, counts.generated_tokens);
}

void Progress::update(const ScheduleCounts& counts, int64_t failed) {
  const auto now = Clock::now();
  if (style_ == ProgressStyle::kNone || now < due_) return;
  due_ = now + (style_ == ProgressStyle::kLine ? kLineInterval : kLogInterval);
  if (style_ == ProgressStyle::kLog) return spdlog::info(line(counts, failed));
  const std::string text = line(counts, failed).substr(0, terminal_columns() - 1);
  std::fprintf(stderr, "\r\x1b[K%s", text.c_str());
  std::fflush(stderr);
  line_open_ = true;
}

void Progress::clear_line() {
  if (!std::exchange(line_open_, false)) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
}

void Progress::finish(const ScheduleCounts& counts, int64_t failed) {
  clear_line();
  if (style_ == ProgressStyle::kNone) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const std::string shared =
      counts.shared_tokens > 0 ? fmt::format(" ({} of them shared)", counts.shared_tokens) : "";
  spdlog::info(
      "requests: {} done, {} failed; tokens: {} prompt{}, {} generated in {:.2f} s, {:.1f} "
      "tokens/s",
      counts.requests_done, failed, counts.prompt_tokens, shared, counts.generated_tokens, seconds,
      static_cast<double>(counts.generated_tokens) / seconds);
}

}  // namespace headrace
