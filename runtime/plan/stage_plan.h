// Who gets which layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/memory/weight_store.h"
#include "runtime/pipeline/stage.h"

namespace headrace {

// Cuts the model's layers into `stages` consecutive ranges so that the most expensive stage is as
// cheap as can be. Cost is an estimate of the time that a step with a good many rows takes, from
// memory; the head is the last stage's, and not wanted for all rows. `split` (layers per stage)
// overrides the cut; it may be empty. Throws UsageError if there are more stages than layers or
// `split` does not add up.
std::vector<StageRange> cut_stages(const Checkpoint& checkpoint, int stages,
                                   const std::vector<int>& split);

// Buffers of hidden states that a stage needs; the only one hands none on.
int link_buffers(const StageRange& range);
// Bytes of one of them.
size_t link_buffer_bytes(const ModelConfig& config, int64_t rows);

}  // namespace headrace
