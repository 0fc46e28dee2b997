// Kernels on rows of hidden states. They are queued on the stream; pointers are to device memory.
// Shapes and formulas: ops/vector_ops.h, ops/rope.h. Throws ResourceMissing where a kernel cannot
// start, DoesNotFit for rows longer than a block's memory (50,000 elements and more).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace headrace::cuda {

void rms_norm(cudaStream_t stream, const float* x, int64_t rows, int64_t n, const float* weight,
              float eps, float* y);
void layer_norm(cudaStream_t stream, const float* x, int64_t rows, int64_t n, const float* weight,
                const float* bias, float eps, float* y);
void add(cudaStream_t stream, float* x, const float* y, int64_t count);
void relu(cudaStream_t stream, float* x, int64_t count);
void apply_rope(cudaStream_t stream, const float* cos, const float* sin, float* x, int64_t rows,
                int heads, int head_dim);

}  // namespace headrace::cuda
