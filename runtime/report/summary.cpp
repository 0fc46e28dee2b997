#include "runtime/report/summary.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

#include "engine/memory/budget.h"

namespace headrace {
namespace {

constexpr double kBusy = 0.5;

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

std::string name(const StageReport& stage) {
  return fmt::format("stage {} (rank {} on {})", stage.rank + 1, stage.rank, stage.host);
}

std::string rate_text(const StageReport& stage, Track track) {
  const auto& measured = stage.expected.rates[static_cast<size_t>(track)];
  std::string text = fmt::format("{:.1f} MB/s", stage.rate(track) / 1e6);
  if (measured && *measured > 0) {
    text += fmt::format(", {:.0f} % of the {:.1f} MB/s measured",
                        100 * stage.rate(track) / *measured, *measured / 1e6);
  }
  return text;
}

std::string table_row(const StageReport& s) {
  const std::string layers = fmt::format("{}-{}", s.facts.first_layer, s.facts.end_layer - 1);
  std::string row = fmt::format("{:>5}  {:<7}", s.rank + 1, layers);
  for (const Activity activity : {Activity::kCompute, Activity::kWeights, Activity::kKv,
                                  Activity::kPeer, Activity::kIdle, Activity::kOther}) {
    row += fmt::format("  {:>8}", percent(s.share(activity)));
  }
  row += fmt::format("  {:>6}  {:>8.2f}", s.count(Counter::kSteps), 1e3 * s.step_s());
  if (s.expected.step_s) row += fmt::format(" ({:.2f} expected)", 1e3 * *s.expected.step_s);
  return row;
}

// Empty where nothing was moved.
std::string moved_line(const StageReport& s) {
  std::string text;
  for (const Track track : {Track::kWeightsIn, Track::kWeightsToGpu, Track::kKvIn, Track::kKvOut,
                            Track::kKvToGpu, Track::kKvFromGpu, Track::kHiddenToGpu,
                            Track::kHiddenFromGpu, Track::kSend, Track::kReceive}) {
    if (s.bytes(track) == 0) continue;
    text += fmt::format("{}{} {} ({})", text.empty() ? "" : ", ", name_of(track),
                        format_bytes(s.bytes(track)), rate_text(s, track));
  }
  return text.empty() ? "" : fmt::format("stage {} moved: {}", s.rank + 1, text);
}

}  // namespace

Bottleneck find_bottleneck(const std::vector<StageReport>& stages) {
  const StageReport& first = stages.front();
  const StageReport& busiest = *std::max_element(
      stages.begin(), stages.end(),
      [](const StageReport& a, const StageReport& b) { return a.busy() < b.busy(); });
  if (busiest.busy() < kBusy) {
    if (first.share(Activity::kIdle) >= first.share(Activity::kPeer)) {
      return {-1, "input",
              fmt::format("the input: no request was there for {} of the time",
                          percent(first.share(Activity::kIdle)))};
    }
    return {-1, "latency",
            fmt::format("the way round the ranks: no stage was at work for more than {} of the "
                        "time; more sequences in flight (--max-batch) would fill the gaps",
                        percent(busiest.busy()))};
  }
  struct Candidate {
    Activity activity;
    const char* resource;
    std::string text;
  };
  const Candidate candidates[] = {
      {Activity::kCompute, "compute", "computing"},
      {Activity::kWeights, "weights",
       "waiting for weights (" + rate_text(busiest, Track::kWeightsIn) + ")"},
      {Activity::kKv, "kv", "waiting for KV pages (" + rate_text(busiest, Track::kKvIn) + ")"},
      {Activity::kOther, "other", "reading requests, forming steps and writing results"},
  };
  const Candidate& most = *std::max_element(
      std::begin(candidates), std::end(candidates), [&](const Candidate& a, const Candidate& b) {
        return busiest.share(a.activity) < busiest.share(b.activity);
      });
  return {busiest.rank, most.resource,
          fmt::format("{}: {} of its time went into {}", name(busiest),
                      percent(busiest.share(most.activity)), most.text)};
}

std::vector<std::string> summary_lines(const std::vector<StageReport>& stages) {
  std::vector<std::string> lines = {
      fmt::format("{:16}{:>8}  {:-^28}", "", "", " waiting for "),
      fmt::format("{:>5}  {:<7}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>6}  {:>8}", "stage",
                  "layers", "compute", "weights", "KV", "previous", "idle", "other", "steps",
                  "ms/step")};
  for (const StageReport& stage : stages) lines.push_back(table_row(stage));
  for (const StageReport& stage : stages) {
    if (std::string moved = moved_line(stage); !moved.empty()) lines.push_back(std::move(moved));
  }
  lines.push_back("bottleneck: " + find_bottleneck(stages).text);
  return lines;
}

}  // namespace headrace
