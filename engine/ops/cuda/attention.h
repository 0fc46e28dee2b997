// Attention over KV pages in device memory. Queued on the stream; pointers, those of the sequences
// and of their page tables included, are to device memory. Shapes and order: ops/attention.h.
// Throws ResourceMissing where a kernel cannot start, DoesNotFit for heads larger than a block's
// memory (2,000 elements and more).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/ops/attention.h"

namespace headrace::cuda {

// `most_rows`: of the `count` sequences.
void store_kv(cudaStream_t stream, const KvPageShape& shape, const AttentionSequence* sequences,
              int64_t count, int64_t most_rows, const float* k, const float* v);
void attention(cudaStream_t stream, const KvPageShape& shape, const AttentionSequence* sequences,
               int64_t count, int64_t most_rows, int heads, float scale, const float* q,
               float* out);

}  // namespace headrace::cuda
