// How fast a stage runs by its plan: what a round takes, in which every sequence in flight gets a
// token in the middle of its life.
#pragma once

#include <cstdint>

#include "engine/memory/weight_layout.h"
#include "runtime/plan/memory_plan.h"
#include "runtime/plan/rates.h"

namespace headrace {

struct Round {
  int sequences = 1;
  int groups = 1;            // steps
  int64_t pages = 0;         // KV pages of a layer when all sequences are at their end
  int64_t tokens = 1;        // of a usual sequence, prompt and answer
  int64_t prompt = 0;        // of them, the prompt's; fewer. All computed: nothing shared
  uint64_t page_stride = 0;  // bytes of one of them on disk
  bool overlapped = true;    // computing and reading go on at the same time
};

// Sets the plan's seconds and rate; leaves them at nothing where the rates are not known.
void predict(const WeightLayout& layout, const Rates& rates, const Round& round, StagePlan& plan);

// Mean seconds that a layer's matrices take for so many rows.
double layer_s(const WeightLayout& layout, const Rates& rates, double rows);

// Whether the head's matrix is read from disk, which is once per step.
bool streams_head(const WeightLayout& layout, const StagePlan& plan);

}  // namespace headrace
