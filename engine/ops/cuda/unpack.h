// Weights as the tensor cores take them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/half.h"
#include "engine/ops/packed_matrix.h"

namespace headrace::cuda {

// Queues it: panels [first, end) of w, not rows of f16, become `rows` [..][w.cols], as many as w
// has, which begin at 16 bytes. Pointers are to device memory. Throws ResourceMissing where a
// kernel cannot start.
void unpack(cudaStream_t stream, const PackedMatrix& w, int64_t first, int64_t end, Half* rows);

}  // namespace headrace::cuda
