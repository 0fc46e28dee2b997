// Starting kernels, with errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "engine/device/cuda/check.h"

namespace headrace::cuda {

// After a kernel was started.
inline void check_start(const char* op) { check_cuda(cudaGetLastError(), op); }

// Before a kernel is started whose blocks take so many bytes of dynamic shared memory. Throws
// DoesNotFit where the GPU has less: `what` "are larger than this GPU's blocks have memory for".
template <typename Kernel>
void allow_shared(const char* op, Kernel kernel, size_t bytes, const std::string& what) {
  constexpr size_t kUsual = 48 << 10;  // more must be asked for
  if (bytes <= kUsual) return;
  const cudaError_t code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                static_cast<int>(bytes));
  if (code == cudaErrorInvalidValue) {
    cudaGetLastError();
    throw DoesNotFit(std::string(op) + ": " + what + " than this GPU's blocks have memory for");
  }
  check_cuda(code, op);
}

}  // namespace headrace::cuda
