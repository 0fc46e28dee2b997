// The CUDA module of this build, or of the folder that tests/gpu/pack.sh made.
#pragma once

#include <cstdlib>
#include <string>

namespace headrace::test {

inline std::string cuda_module() {
  const char* const packed = std::getenv("HEADRACE_CUDA_MODULE");
  return packed ? packed : CUDA_MODULE;
}

}  // namespace headrace::test
