// CUDA's error codes as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "engine/error.h"

namespace headrace {

// Throws DoesNotFit where memory ran out, else ResourceMissing. `what`: "allocating 64 MiB".
inline void check_cuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the next call must not report it again
  const std::string text = std::string(what) + " on the GPU failed: " + cudaGetErrorString(code) +
                           " (" + cudaGetErrorName(code) + ")";
  if (code == cudaErrorMemoryAllocation) throw DoesNotFit(text);
  throw ResourceMissing(text);
}

}  // namespace headrace
