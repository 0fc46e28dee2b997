#include "runtime/report/report_json.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "headrace/version.h"
#include "runtime/error.h"
#include "runtime/report/summary.h"

namespace headrace {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json options_json(const GenerateOptions& o) {
  json options = {{"model", o.model},
                  {"input", o.input},
                  {"output", o.output},
                  {"resume", o.resume},
                  {"max_batch", o.max_batch},
                  {"threads", o.threads},
                  {"split", o.split},
                  {"prefill_chunk", o.prefill_chunk},
                  {"share_prefixes", o.share_prefixes},
                  {"order", o.order == Order::kInput ? "input" : "longest"},
                  {"host_memory", o.host_memory},
                  {"target", o.target},
                  {"numerics", numerics(o)},
                  {"max_tokens", o.defaults.max_tokens},
                  {"ignore_eos", o.defaults.ignore_eos},
                  {"temperature", o.defaults.sampling.temperature},
                  {"seed", o.defaults.sampling.seed}};
  return options;
}

const char* name_of(RunEnd outcome) {
  switch (outcome) {
    case RunEnd::kDone:
      return "done";
    case RunEnd::kSomeFailed:
      return "some_failed";
    case RunEnd::kInterrupted:
      return "interrupted";
  }
  return "unknown";
}

double per_second(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
}

// Only regular files can be spoilt: /dev/null may well be named twice.
bool same_file(const std::string& a, const std::string& b) {
  std::error_code error;
  if (a.empty() || b.empty() || b == "-") return false;
  if (fs::exists(a, error) && !fs::is_regular_file(a, error)) return false;
  if (fs::equivalent(a, b, error)) return true;
  return fs::weakly_canonical(a, error) == fs::weakly_canonical(b, error);
}

}  // namespace

std::string report_json(const GenerateOptions& options, const std::vector<StageReport>& stages,
                        const RunCounts& counts, RunEnd outcome) {
  const double seconds = stages.front().wall_s();
  const auto slowest = std::max_element(
      stages.begin(), stages.end(),
      [](const StageReport& a, const StageReport& b) { return a.load_s < b.load_s; });
  const Bottleneck bottleneck = find_bottleneck(stages);
  json report = {
      {"version", HEADRACE_VERSION},
      {"outcome", name_of(outcome)},
      {"options", options_json(options)},
      {"requests", {{"done", counts.done}, {"failed", counts.failed}, {"resumed", counts.resumed}}},
      {"tokens",
       {{"prompt", counts.prompt_tokens},
        {"shared", counts.shared_tokens},
        {"generated", counts.generated_tokens}}},
      {"load_s", slowest->load_s},
      {"generation_s", seconds},
      {"generated_tokens_per_s", per_second(counts.generated_tokens, seconds)},
      {"tokens_per_s",
       per_second(counts.prompt_tokens - counts.shared_tokens + counts.generated_tokens, seconds)},
      {"stages", json::array()},
      {"bottleneck",
       {{"rank", bottleneck.rank >= 0 ? json(bottleneck.rank) : json()},
        {"resource", bottleneck.resource},
        {"text", bottleneck.text}}}};
  for (const StageReport& stage : stages) report["stages"].push_back(to_json(stage));
  return report.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

void refuse_shared_files(const GenerateOptions& o) {
  const auto refuse = [](const std::string& option, const std::string& path,
                         const std::string& other) {
    throw UsageError(option + " " + path + " is the file of " + other + "; give it one of its own");
  };
  const std::pair<const char*, const std::string*> others[] = {
      {"--model", &o.model}, {"--input", &o.input}, {"--output", &o.output}};
  for (const auto& [name, path] : others) {
    if (same_file(o.trace, *path)) refuse("--trace", o.trace, name);
    if (same_file(o.report, *path)) refuse("--report", o.report, name);
  }
  if (same_file(o.trace, o.report)) refuse("--trace", o.trace, "--report");
}

}  // namespace headrace
