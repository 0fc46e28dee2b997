// Who gets which layers, and what that needs in memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/memory/weight_store.h"
#include "runtime/pipeline/stage.h"

namespace headrace {

// Cuts the model's layers into `stages` consecutive ranges so that the most expensive stage is as
// cheap as can be; the head counts for the last stage, the embedding look-up for the first. Cost is
// the bytes of weights that a token passes. `split` (layers per stage) overrides the cut; it may be
// empty. Throws UsageError if there are more stages than layers or `split` does not add up.
std::vector<StageRange> cut_stages(const Checkpoint& checkpoint, int stages,
                                   const std::vector<int>& split);

// What one stage takes from its host memory budget.
struct StageMemory {
  uint64_t weights = 0;
  uint64_t activations = 0;  // scratch of the sweep, logits, link buffers
  uint64_t kv_page = 0;      // one KV page in every layer of the stage
  int64_t kv_pages = 0;      // as many as fit, at most what `slots` sequences can use
};

// Throws DoesNotFit with a table of need and budget if weights, activations and the KV pages of one
// sequence of kPageTokens tokens do not fit.
StageMemory plan_memory(const Checkpoint& checkpoint, const StageRange& range,
                        const Stage::Sizes& sizes, uint64_t budget);

// Bytes of one link buffer.
size_t link_buffer_bytes(const ModelConfig& config, int64_t step_rows);

// "layers 0-14, embedding: weights 45.1 MiB, activations 9.0 MiB, KV cache 1.2 GiB (40,960 tokens)"
std::string describe(const StageRange& range, const StageMemory& memory);

// Memory a process may still take on this machine: MemAvailable, and less if a cgroup limits it.
uint64_t available_host_memory();

}  // namespace headrace
