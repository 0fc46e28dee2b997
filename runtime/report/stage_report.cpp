#include "runtime/report/stage_report.h"

#include <nlohmann/json.hpp>

namespace headrace {
namespace {

using nlohmann::json;

constexpr std::array<const char*, kActivities> kActivityKeys = {
    "other", "compute", "wait_weights", "wait_kv", "wait_previous", "idle"};
constexpr std::array<const char*, kTracks> kTrackKeys = {
    "compute",   "gpu",         "weights_in",    "kv_in",
    "kv_out",    "sent",        "received",      "weights_to_gpu",
    "kv_to_gpu", "kv_from_gpu", "hidden_to_gpu", "hidden_from_gpu"};
constexpr std::array<const char*, kCounters> kCounterKeys = {"steps", "prefill_rows",
                                                             "decode_rows"};

json number_or_null(const std::optional<double>& value) { return value ? json(*value) : json(); }

std::optional<double> optional_number(const json& value) {
  return value.is_null() ? std::nullopt : std::optional(value.get<double>());
}

// What computes moves no bytes.
constexpr size_t kFirstMover = static_cast<size_t>(Track::kWeightsIn);

}  // namespace

double StageReport::seconds(Activity activity) const {
  return static_cast<double>(totals.activity_ns[static_cast<size_t>(activity)]) * 1e-9;
}

double StageReport::share(Activity activity) const {
  return totals.wall_ns > 0 ? seconds(activity) / wall_s() : 0.0;
}

double StageReport::rate(Track track) const {
  return totals.wall_ns > 0 ? static_cast<double>(bytes(track)) / wall_s() : 0.0;
}

double StageReport::step_s() const {
  const int64_t steps = count(Counter::kSteps);
  return steps > 0 ? wall_s() / static_cast<double>(steps) : 0.0;
}

json to_json(const StageReport& r) {
  json stage = {{"rank", r.rank},
                {"host", r.host},
                {"cpu", r.cpu},
                {"layers", {r.facts.first_layer, r.facts.end_layer - 1}},
                {"threads", r.facts.threads},
                {"kernels", r.facts.kernels},
                {"plan", r.facts.plan},
                {"load_s", r.load_s},
                {"wall_s", r.wall_s()},
                {"cpu_s", r.cpu_s},
                {"peak_memory_bytes", r.peak_memory},
                {"dropped_trace_events", r.dropped_events},
                {"step_s", r.step_s()},
                {"expected_step_s", number_or_null(r.expected.step_s)}};
  for (size_t i = 0; i < kActivities; ++i) {
    stage["seconds"][kActivityKeys[i]] = r.seconds(static_cast<Activity>(i));
    stage["ns"][kActivityKeys[i]] = r.totals.activity_ns[i];
  }
  stage["ns"]["wall"] = r.totals.wall_ns;
  for (size_t i = 0; i < kCounters; ++i) stage[kCounterKeys[i]] = r.totals.counts[i];
  for (size_t i = kFirstMover; i < kTracks; ++i) {
    stage["moved"][kTrackKeys[i]] = {{"bytes", r.totals.bytes[i]},
                                     {"transfers", r.totals.transfers[i]},
                                     {"bytes_per_s", r.rate(static_cast<Track>(i))},
                                     {"measured_bytes_per_s", number_or_null(r.expected.rates[i])}};
  }
  return stage;
}

StageReport stage_report(const json& stage) {
  StageReport r;
  r.rank = stage.at("rank");
  r.host = stage.at("host");
  r.cpu = stage.at("cpu");
  r.facts.first_layer = stage.at("layers").at(0);
  r.facts.end_layer = stage.at("layers").at(1).get<int>() + 1;
  r.facts.threads = stage.at("threads");
  r.facts.kernels = stage.at("kernels");
  r.facts.plan = stage.at("plan");
  r.load_s = stage.at("load_s");
  r.cpu_s = stage.at("cpu_s");
  r.peak_memory = stage.at("peak_memory_bytes");
  r.dropped_events = stage.at("dropped_trace_events");
  r.expected.step_s = optional_number(stage.at("expected_step_s"));
  for (size_t i = 0; i < kActivities; ++i) {
    r.totals.activity_ns[i] = stage.at("ns").at(kActivityKeys[i]);
  }
  r.totals.wall_ns = stage.at("ns").at("wall");
  for (size_t i = 0; i < kCounters; ++i) r.totals.counts[i] = stage.at(kCounterKeys[i]);
  for (size_t i = kFirstMover; i < kTracks; ++i) {
    const json& moved = stage.at("moved").at(kTrackKeys[i]);
    r.totals.bytes[i] = moved.at("bytes");
    r.totals.transfers[i] = moved.at("transfers");
    r.expected.rates[i] = optional_number(moved.at("measured_bytes_per_s"));
  }
  return r;
}

}  // namespace headrace
