// The GPUs of this machine, by way of a module that is opened when it is wanted: one program starts
// on nodes with and without CUDA.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/device/device.h"

namespace headrace {

struct DeviceFacts {
  std::string name;
  std::string bus;                             // where it is in this machine: "0000:3b:00.0"
  int major = 0, minor = 0;                    // compute capability
  uint64_t memory_total = 0, memory_free = 0;  // bytes
  std::string uuid = {};                       // as CUDA tells GPUs, or slices of one, apart
};

// Bytes per second between pinned host memory and the device, one way at a time, and of the
// device's own memory, read and written alike.
struct DeviceLinkRates {
  double to_device = 0, from_device = 0, memory = 0;
};

// One thread at a time. Throws ResourceMissing where the driver refuses, with its reason.
class DeviceModule {
 public:
  virtual ~DeviceModule() = default;

  // GPUs that this process can use, at least one.
  virtual int count() = 0;
  virtual DeviceFacts facts(int device) = 0;
  // Takes 64 MiB on the host and twice that on the device for a moment.
  virtual DeviceLinkRates measure_link(int device) = 0;
  // Copies to the device until `stop`, from another thread than the one that sets it: bytes per
  // second. Takes 64 MiB on either side.
  virtual double copy_until(int device, const std::atomic<bool>& stop) = 0;
  virtual std::unique_ptr<Device> open(int device) = 0;
  // "CUDA 13.0, driver for CUDA 13.1"
  virtual std::string software() = 0;
  // What bits of f16 products depend on besides the GPU: the library, and how one of its algorithms
  // is chosen. "cuBLASLt 13.1.0, choice 2"
  virtual std::string products() = 0;
};

inline constexpr char kCudaModule[] = "libheadrace_cuda.so";

// What a module exports, with C linkage.
//   const char* headrace_module_version();    HEADRACE_VERSION of its build
//   DeviceModule* headrace_open_module();     the caller's to delete
inline constexpr char kModuleVersion[] = "headrace_module_version";
inline constexpr char kOpenModule[] = "headrace_open_module";

// Opens the module `file` once per process; it stays until the process ends. Throws
// ResourceMissing: there is none, a library that it needs is missing, or it is of another build.
std::unique_ptr<DeviceModule> open_device_module(const std::string& file);

}  // namespace headrace
