// CUDA's error codes as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "engine/error.h"

namespace headrace {

// What a GPU says that is broken, or gone: not what a kernel did wrong.
inline bool is_lost(cudaError_t code) {
  return code == cudaErrorECCUncorrectable || code == cudaErrorNvlinkUncorrectable ||
         code == cudaErrorHardwareStackError || code == cudaErrorDevicesUnavailable ||
         code == cudaErrorUnknown || static_cast<int>(code) == 226;  // cudaErrorContained
}

// What only a mistake of headrace brings about, or memory that fails unnoticed.
inline bool is_fault(cudaError_t code) {
  return code == cudaErrorIllegalAddress || code == cudaErrorIllegalInstruction ||
         code == cudaErrorMisalignedAddress || code == cudaErrorInvalidAddressSpace ||
         code == cudaErrorInvalidPc || code == cudaErrorLaunchFailure || code == cudaErrorAssert ||
         code == cudaErrorInvalidValue || code == cudaErrorInvalidConfiguration;
}

// `what`: "allocating 64 bytes". Throws DoesNotFit where memory ran out, DeviceLost,
// std::runtime_error for a fault, ResourceMissing for all else.
inline void check_cuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the next call must not report it again
  const std::string text = std::string(what) + " on the GPU failed: " + cudaGetErrorString(code) +
                           " (" + cudaGetErrorName(code) + ")";
  if (code == cudaErrorMemoryAllocation) throw DoesNotFit(text);
  if (is_lost(code)) {
    throw DeviceLost(text +
                     "; run again with --resume, on another GPU (--device) if it fails there "
                     "again");
  }
  if (is_fault(code)) throw std::runtime_error(text);
  throw ResourceMissing(text);
}

}  // namespace headrace
