// What one stage did in a run: the numbers behind the summary and the report file.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "engine/timeline.h"

namespace headrace {

// What a stage is.
struct StageFacts {
  int first_layer = 0;
  int end_layer = 0;
  int threads = 1;
  std::string kernels;  // "avx512"
  std::string plan;     // as printed at start
};

// What the plan expects, as far as it does.
struct Expected {
  std::optional<double> step_s;
  // The measured rate of the tier or link behind a track, bytes per second.
  std::array<std::optional<double>, kTracks> rates;
};

struct StageReport {
  int rank = 0;
  std::string host;
  std::string cpu;  // model name
  StageFacts facts;
  double load_s = 0;
  double cpu_s = 0;             // of all threads, during the generation
  uint64_t peak_memory = 0;     // resident bytes (VmHWM)
  uint64_t dropped_events = 0;  // of the trace
  TimelineTotals totals;
  Expected expected;

  double wall_s() const { return static_cast<double>(totals.wall_ns) * 1e-9; }
  double seconds(Activity activity) const;
  // Of the wall time, 0 to 1; all activities add up to 1.
  double share(Activity activity) const;
  // Share of the time in which the stage was neither waiting for another rank nor idle.
  double busy() const { return 1.0 - share(Activity::kPeer) - share(Activity::kIdle); }
  uint64_t bytes(Track track) const { return totals.bytes[static_cast<size_t>(track)]; }
  // Bytes per second of the wall time.
  double rate(Track track) const;
  int64_t count(Counter counter) const { return totals.counts[static_cast<size_t>(counter)]; }
  // Wall time per step; 0 without steps.
  double step_s() const;
};

// What the coordinator counted.
struct RunCounts {
  int64_t done = 0;
  int64_t failed = 0;
  int64_t resumed = 0;  // were done before
  int64_t prompt_tokens = 0;
  int64_t shared_tokens = 0;  // of them, not computed: a sequence that begins alike had them
  int64_t generated_tokens = 0;
};

// The schema is in report.md. `stage_report` reads what `to_json` wrote; throws nlohmann's
// exceptions on anything else.
nlohmann::json to_json(const StageReport& report);
StageReport stage_report(const nlohmann::json& json);

}  // namespace headrace
