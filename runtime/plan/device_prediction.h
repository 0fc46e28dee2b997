// How fast a stage on a device runs by its plan.
#pragma once

#include "engine/memory/weight_layout.h"
#include "engine/model/config.h"
#include "runtime/plan/memory_plan.h"
#include "runtime/plan/rates.h"

namespace headrace {

// Sets the plan's seconds and rates; leaves them at nothing where those of link and device are not
// known. A round is in the middle of the sequences' lives; of prompts it counts what they bring
// over link and disk, and their products.
void predict_on_device(const ModelConfig& config, const WeightLayout& layout,
                       const Workload& workload, const Rates& rates, int sequences,
                       StagePlan& plan);

}  // namespace headrace
