// The summary at the end of a run, as text.
#pragma once

#include <string>
#include <vector>

#include "runtime/report/stage_report.h"

namespace headrace {

// What held the run up.
struct Bottleneck {
  int rank = -1;         // -1: no stage, but the input or the pipeline as a whole
  std::string resource;  // compute, weights, kv, other, input, latency
  std::string text;      // one line without "bottleneck: "
};

// By rank, not empty. The busiest stage (least time waiting for another rank) is the one that the
// others wait for; its largest share names the resource. Where no stage is busy for half of the
// time, it is the input (rank 0 idle) or the latency of the ring (too few sequences in flight).
Bottleneck find_bottleneck(const std::vector<StageReport>& stages);

// A table with a row per stage, a line per stage of the bytes it moved, and the bottleneck.
std::vector<std::string> summary_lines(const std::vector<StageReport>& stages);

}  // namespace headrace
