// What the module of a program with fake GPUs calls back: the whole of headrace, in real processes,
// on machines without a GPU. HEADRACE_FAKE_GPUS: how many there are. HEADRACE_FAKE_GPU_LOST_AFTER:
// a GPU is lost when the host has waited for it so often, and with HEADRACE_FAKE_GPU_HANGS it hangs
// then.
#include <cstdlib>
#include <string>

#include "comm/device_wire.h"
#include "comm/error.h"
#include "engine/error.h"
#include "tests/device/fake_device.h"
#include "tests/device/fake_module.h"

namespace headrace {
namespace {

constexpr uint64_t kMemory = uint64_t{16} << 30;

class ProgramModule final : public test::FakeModule {
 public:
  int count() override {
    const char* const given = std::getenv("HEADRACE_FAKE_GPUS");
    const int devices = given ? std::atoi(given) : 1;
    if (devices == 0) throw ResourceMissing("there is no fake GPU");
    return devices;
  }
  DeviceFacts facts(int device) override {
    const std::string number = std::to_string(device);
    return {"fake GPU", "bus " + number, 9, 0, kMemory, kMemory - (uint64_t{1} << 30)};
  }
  std::unique_ptr<Device> open(int device) override {
    auto gpu = std::make_unique<test::FakeDevice>(static_cast<uint64_t>(device) + 1);
    gpu->refuse_unpinned();
    if (const char* const waits = std::getenv("HEADRACE_FAKE_GPU_LOST_AFTER")) {
      gpu->lose_after(std::atoll(waits));
      if (std::getenv("HEADRACE_FAKE_GPU_HANGS")) gpu->hang_when_lost();
    }
    return gpu;
  }
};

}  // namespace
}  // namespace headrace

extern "C" headrace::DeviceModule* headrace_test_open_module() {
  return new headrace::ProgramModule;
}
extern "C" headrace::DeviceWires* headrace_test_open_wires() {
  throw headrace::CommError("fake GPUs have no NCCL");
}
