// Device modules without a device, one for each way in which a module can be wrong.
#include "headrace/version.h"
#include "tests/device/fake_module.h"

#ifdef FAKE_NEEDY
void of_a_library_that_is_not_there();
#endif

namespace headrace {
namespace {

class NumberedModule final : public test::FakeModule {
 public:
  int count() override { return 2; }
  DeviceFacts facts(int device) override {
    return {"fake " + std::to_string(device),
            "0000:0" + std::to_string(device) + ":00.0",
            9,
            0,
            uint64_t{80} << 30,
            uint64_t{79} << 30};
  }
  std::unique_ptr<Device> open(int) override { return nullptr; }
  std::string software() override {
#ifdef FAKE_NEEDY
    of_a_library_that_is_not_there();
#endif
    return "no CUDA";
  }
};

}  // namespace
}  // namespace headrace

#ifndef FAKE_OTHER
extern "C" const char* headrace_module_version() {
#ifdef FAKE_OLD
  return "0.0.1 (old)";
#else
  return HEADRACE_VERSION;
#endif
}
#endif
extern "C" headrace::DeviceModule* headrace_open_module() { return new headrace::NumberedModule; }
