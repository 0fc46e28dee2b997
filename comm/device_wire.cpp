#include "comm/device_wire.h"

#include <dlfcn.h>

#include "comm/error.h"

namespace headrace {

std::unique_ptr<DeviceWires> open_device_wires(const std::string& file) {
  // It stays, as for who computes with it.
  void* const module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!module) throw CommError(std::string("opening the CUDA module failed: ") + dlerror());
  void* const open = dlsym(module, kOpenDeviceWires);
  if (!open) {
    throw CommError("the CUDA module was built without NCCL: CMake found no nccl.h");
  }
  return std::unique_ptr<DeviceWires>(reinterpret_cast<DeviceWires* (*)()>(open)());
}

}  // namespace headrace
