// What a plan says to the user.
#pragma once

#include <string>

#include "runtime/plan/memory_plan.h"

namespace headrace {

// One line: "layers 0-14, embedding: weights 45.1 MiB ..., KV cache 1.2 GiB (40,960 tokens), ...".
std::string describe(const StagePlan& plan);
// The same as lines of a table, with the measured rates.
std::string plan_table(const StagePlan& plan, const Rates& rates);
// What the plan predicts; empty without rates.
std::string describe_prediction(const StagePlan& plan);

}  // namespace headrace
