// A GPU by way of CUDA.
#pragma once

#include <memory>

#include "engine/device/device.h"

namespace headrace {

// The calling thread is the one that uses it. Throws ResourceMissing.
std::unique_ptr<Device> open_cuda_device(int device);

}  // namespace headrace
