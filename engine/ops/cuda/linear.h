// Linear layers over packed weights in device memory. Queued on the stream; pointers, those of the
// matrix included, are to device memory. Shapes and formulas: ops/linear.h. Throws ResourceMissing
// where the kernel cannot start.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/ops/packed_matrix.h"

namespace headrace::cuda {

void linear_panels(cudaStream_t stream, const float* x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* y);
void gate_panels(cudaStream_t stream, const float* x, int64_t rows, const PackedMatrix& w,
                 const float* bias, int64_t first, int64_t end, float* gate);

}  // namespace headrace::cuda
