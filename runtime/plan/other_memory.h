// What a rank keeps in memory beside weights, KV cache and activations: held within bounds that do
// not depend on the budget, and set aside in the plan.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/timeline.h"

namespace headrace {

// Bytes.
struct OtherMemory {
  uint64_t tokenizer = 0;
  uint64_t requests = 0;  // read ahead
  uint64_t logprobs = 0;  // of sequences in flight
  uint64_t trace = 0;

  uint64_t sum() const { return tokenizer + requests + logprobs + trace; }
};

// A tokenizer with so many tokens, its cache of pieces included.
uint64_t tokenizer_bytes(int64_t tokens);

// Of requests that are read ahead: a thousand prompts of some 250 tokens.
inline constexpr uint64_t kReadAheadBytes = 2 << 20;

// That a trace may have per rank: a minute or more of a model with 30 layers.
inline constexpr size_t kTraceEvents = size_t{1} << 18;
// Recorded, and in order when they are written.
inline constexpr uint64_t kTraceBytes = kTraceEvents * (sizeof(TraceEvent) + sizeof(TraceEvent*));

}  // namespace headrace
