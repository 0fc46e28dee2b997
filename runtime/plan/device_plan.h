// What of a stage goes on its GPU, and what of the rest on host and disk.
#pragma once

#include <cstdint>

#include "engine/device/device_stage.h"
#include "runtime/plan/memory_plan.h"

namespace headrace {

struct DeviceLimits {
  uint64_t memory = 0;            // bytes of the device
  uint64_t weights = UINT64_MAX;  // of them, for weights that stay there
  uint64_t kv = UINT64_MAX;       // and for KV pages
  bool half = true;               // arithmetic, see DeviceStage
  int wires = 0;                  // hops by which hidden states come and go on the device
  // Of the KV pages in host memory that single rows attend to, how many the CPU may attend to.
  double least_host_share = 0, most_host_share = 0;
};

// KV pages of all sequences that are wanted go on the device as far as they have room, the others
// in host memory, and on disk what has no room there; then as much of the layers as there is room
// for, in whole matrices, and the rest passes through it from host memory, and from disk what has
// no room there. Where not all sequences fit beside the weights, so many as give most tokens per
// second, or fewer than are wanted where `workload` is exact. The CPU attends to as many of the KV
// pages in host memory as makes a round shortest. `sizes` has slots, rows and format. Throws
// DoesNotFit with a table.
StagePlan plan_device_stage(const ModelConfig& config, const WeightLayout& layout,
                            const Stage::Sizes& sizes, const Workload& workload,
                            const PlanLimits& limits, const DeviceLimits& device,
                            const Rates& rates);

}  // namespace headrace
