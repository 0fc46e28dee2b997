// Kernels on rows of hidden states. Our own: the float32 ones have the CPU's bits, those that round to
// f16 write what the next product reads, and each is a pass over memory with nothing to gain from a
// library. They are queued on the stream; pointers are to device memory.
// Shapes and formulas: ops/vector_ops.h, ops/rope.h. Throws ResourceMissing where a kernel cannot
// start, DoesNotFit for rows longer than a block's memory (50,000 elements and more).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/half.h"
#include "engine/ops/ops.h"

namespace headrace::cuda {

void normalise(cudaStream_t stream, const RowNorm& norm, const float* x, int64_t rows, float* y);
void normalise(cudaStream_t stream, const RowNorm& norm, const float* x, int64_t rows, Half* y);
void add(cudaStream_t stream, float* x, const float* y, int64_t count);
void relu(cudaStream_t stream, float* x, int64_t count);
void apply_rope(cudaStream_t stream, const float* cos, const float* sin, float* x, int64_t rows,
                int heads, int head_dim);
// See Device::embed().
void embed(cudaStream_t stream, const EmbeddingTables& tables, const int32_t* ids,
           const int32_t* places, int64_t rows, float* x);
void find_best(cudaStream_t stream, const float* logits, int64_t rows, int64_t width, int64_t id,
               BestToken* best);

void to_half(cudaStream_t stream, const float* x, int64_t count, Half* y);
void silu_multiply(cudaStream_t stream, const float* gate, const float* up, int64_t rows,
                   int64_t width, int64_t stride, float scale, Half* y);

// *differing = how many of the 16-bit parts of `bytes` bytes (even) are not the same.
void count_differing(cudaStream_t stream, const void* a, const void* b, size_t bytes,
                     uint32_t* differing);

}  // namespace headrace::cuda
