// libheadrace_cuda.so: see engine/device/device_module.h. Links the CUDA runtime, never the
// driver's own library, so that it opens where there is none and says so.

#include <cuda_runtime.h>

#include <fstream>
#include <string>

#include "engine/device/cuda/check.h"
#include "engine/device/cuda/cuda_device.h"
#include "engine/device/cuda/memory.h"
#include "engine/device/cuda/products.h"
#include "engine/device/device_module.h"
#include "headrace/version.h"

namespace headrace {
namespace {

constexpr size_t kCopyBytes = size_t{64} << 20;
constexpr int kCopies = 8;

// CUDA writes 13.0 as 13000.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text;
  for (const char byte : uuid.bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    const auto value = static_cast<unsigned char>(byte);
    text += kDigits[value / 16];
    text += kDigits[value % 16];
  }
  return text;
}

double copy_rate(const CudaStream& stream, std::byte* to, const std::byte* from) {
  const auto copy = [&] {
    check_cuda(cudaMemcpyAsync(to, from, kCopyBytes, cudaMemcpyDefault, stream.get()), "copying");
  };
  CudaEvent begin, end;
  copy();
  begin.record(stream);
  for (int i = 0; i < kCopies; ++i) copy();
  end.record(stream);
  end.synchronize();
  return static_cast<double>(kCopyBytes) * kCopies / end.seconds_since(begin);
}

class CudaModule final : public DeviceModule {
 public:
  int count() override {
    int devices = 0;
    const cudaError_t code = cudaGetDeviceCount(&devices);
    if (code == cudaErrorInsufficientDriver) throw ResourceMissing(why_no_driver());
    if (code == cudaErrorNoDevice) throw ResourceMissing("there is no GPU (" + software() + ")");
    check_cuda(code, "looking for devices");
    return devices;
  }

  DeviceFacts facts(int device) override {
    use_device(device);
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, device), "asking for properties");
    size_t free = 0, total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "asking for memory");
    char bus[32] = "";
    check_cuda(cudaDeviceGetPCIBusId(bus, sizeof bus, device), "asking for the bus");
    return {properties.name, bus,  properties.major,          properties.minor,
            total,           free, uuid_text(properties.uuid)};
  }

  DeviceLinkRates measure_link(int device) override {
    use_device(device);
    const DeviceMemory memory(kCopyBytes), other(kCopyBytes);
    const PinnedMemory pinned(kCopyBytes);
    const CudaStream stream;
    return {copy_rate(stream, memory.data(), pinned.data()),
            copy_rate(stream, pinned.data(), memory.data()),
            2 * copy_rate(stream, other.data(), memory.data())};
  }

  double copy_until(int device, const std::atomic<bool>& stop) override {
    use_device(device);
    const DeviceMemory memory(kCopyBytes);
    const PinnedMemory pinned(kCopyBytes);
    const CudaStream stream;
    double sum = 0;
    int times = 0;
    while (!stop || times == 0) {
      sum += copy_rate(stream, memory.data(), pinned.data());
      ++times;
    }
    return sum / times;
  }

  std::unique_ptr<Device> open(int device) override { return open_cuda_device(device); }

  std::string software() override {
    const Versions v = versions();
    const std::string driver = driver_version();
    return "CUDA " + v.runtime + ", " +
           (v.driver.empty()
                ? "no driver"
                : "driver " + driver + (driver.empty() ? "" : " ") + "for CUDA " + v.driver);
  }

  std::string products() override { return products_version(); }

 private:
  struct Versions {
    std::string runtime, driver;  // empty: there is none
  };
  // "580.95.05"; empty where the kernel does not say.
  static std::string driver_version() {
    std::string version;
    std::getline(std::ifstream("/sys/module/nvidia/version"), version);
    return version;
  }
  static Versions versions() {
    int runtime = 0, driver = 0;
    check_cuda(cudaRuntimeGetVersion(&runtime), "asking for the version");
    check_cuda(cudaDriverGetVersion(&driver), "asking for the driver's version");
    return {version_text(runtime), driver == 0 ? "" : version_text(driver)};
  }
  static std::string why_no_driver() {
    const Versions v = versions();
    if (v.driver.empty()) {
      return "there is no NVIDIA driver (the module has CUDA " + v.runtime + ")";
    }
    return "the NVIDIA driver is for CUDA " + v.driver + ", the module has CUDA " + v.runtime +
           ": update the driver";
  }
};

}  // namespace
}  // namespace headrace

extern "C" const char* headrace_module_version() { return HEADRACE_VERSION; }
extern "C" headrace::DeviceModule* headrace_open_module() { return new headrace::CudaModule; }
