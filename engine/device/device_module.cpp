#include "engine/device/device_module.h"

#include <dlfcn.h>

#include <filesystem>

#include "engine/error.h"
#include "headrace/version.h"

namespace headrace {
namespace {

template <typename Function>
Function find(void* module, const char* name, const std::string& file) {
  void* const symbol = dlsym(module, name);
  if (!symbol) {
    throw ResourceMissing(file + " is not a module of headrace: it has no " + name +
                          "; install it and the program from one build");
  }
  return reinterpret_cast<Function>(symbol);
}

}  // namespace

std::unique_ptr<DeviceModule> open_device_module(const std::string& file) {
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) {
    throw ResourceMissing("there is no " + file +
                          ": build headrace where the CUDA toolkit is installed "
                          "(-DHEADRACE_CUDA=ON says why it is not found)");
  }
  // Not closed again: CUDA's own threads and handlers live on.
  void* const module = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!module) throw ResourceMissing(std::string("opening the CUDA module failed: ") + dlerror());
  const std::string version = find<const char* (*)()>(module, kModuleVersion, file)();
  if (version != HEADRACE_VERSION) {
    throw ResourceMissing(file + " is of headrace " + version + ", this program is " +
                          HEADRACE_VERSION + "; install both from one build");
  }
  return std::unique_ptr<DeviceModule>(find<DeviceModule* (*)()>(module, kOpenModule, file)());
}

}  // namespace headrace
