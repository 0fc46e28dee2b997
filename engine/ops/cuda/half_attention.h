// Causal attention over f16 pages on the tensor cores: f16 factors, f32 sums and softmax.
//
// A warp has 16 queries, pairs of (row, head of a KV head's group), and goes through the context in
// tiles of 64 tokens (four pages) from position 0 on, with an online softmax step for each, so that
// the score matrix is never there. Nothing of a query's arithmetic depends on what else is in its
// warp, block or batch: a tile that lies past its position leaves it as it was, bit for bit.
// q * scale * log2(e) and the softmax weights (up to 1, summed up as rounded) are rounded to f16.
// Our own for that reason: kept libraries (FlashAttention, FlashInfer) cut a context into parts by how
// much else a batch has, and want pages numbered in one pool, where these have any address.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/half.h"
#include "engine/ops/attention.h"

namespace headrace::cuda {

// Pointers are to device memory, `sequences` and their page tables, too. q: [rows][heads *
// head_dim], out the same; shape.format is kF16. `most_rows`: of a sequence. Queued on the stream.
// Throws DoesNotFit for heads of more than 256 elements, ResourceMissing.
void half_attention(cudaStream_t stream, const KvPageShape& shape,
                    const AttentionSequence* sequences, int64_t count, int64_t most_rows, int heads,
                    float scale, const float* q, Half* out);

}  // namespace headrace::cuda
