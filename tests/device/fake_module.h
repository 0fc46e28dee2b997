// What modules without a device have in common.
#pragma once

#include <string>
#include <thread>

#include "engine/device/device_module.h"

namespace headrace::test {

class FakeModule : public DeviceModule {
 public:
  DeviceLinkRates measure_link(int) override { return {50e9, 40e9, 3e12}; }
  double copy_until(int, const std::atomic<bool>& stop) override {
    while (!stop) std::this_thread::yield();
    return 50e9;
  }
  std::string products() override { return "fake products"; }
  std::string software() override { return "no CUDA"; }
};

}  // namespace headrace::test
