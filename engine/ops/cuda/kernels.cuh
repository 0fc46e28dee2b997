// Starting kernels whose blocks are block programs (row_blocks.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace headrace {

class GpuBlock {
 public:
  __device__ int threads() const { return static_cast<int>(blockDim.x); }

  template <typename F>
  __device__ void each_thread(F&& f) {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  // All threads take the same pieces of the block's dynamic shared memory.
  template <typename T>
  __device__ T* shared(int64_t count) {
    extern __shared__ float4 memory[];
    char* const piece = reinterpret_cast<char*>(memory) + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return reinterpret_cast<T*>(piece);
  }

 private:
  size_t used_ = 0;
};

}  // namespace headrace
