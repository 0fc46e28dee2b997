// What a run asks of its stages, before anything is planned.
#pragma once

#include "engine/model/config.h"
#include "runtime/pipeline/stage.h"
#include "runtime/plan/memory_plan.h"
#include "runtime/requests/request_sizes.h"
#include "runtime/run.h"

namespace headrace {

// Slots, rows and formats of a stage; pages come from its plan.
Stage::Sizes sizes_on_host(const RunOptions& options, const ModelConfig& config);
Stage::Sizes sizes_on_device(const RunOptions& options, const ModelConfig& config);

// `sizes`: the same on all ranks.
Workload workload_of(const RunOptions& options, RequestSizes sizes, const ModelConfig& config,
                     int ranks);

}  // namespace headrace
