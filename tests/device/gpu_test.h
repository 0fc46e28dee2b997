// Tests of a device's ops: on the fake one, and on this machine's first GPU, where they are skipped
// if there is none.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/device/device_module.h"
#include "engine/error.h"
#include "tests/device/cuda_module.h"
#include "tests/device/fake_device.h"

namespace headrace::test {

// The device that a test is for.
enum class Kind { kFake, kGpu };

inline std::string name_of(const testing::TestParamInfo<Kind>& info) {
  return info.param == Kind::kFake ? "fake" : "gpu";
}

inline std::vector<Half> halves(const std::vector<float>& values) {
  std::vector<Half> result;
  for (const float value : values) result.push_back(to_half(value));
  return result;
}

inline std::vector<Half> not_numbers(int64_t count) {
  return std::vector<Half>(static_cast<size_t>(count), Half{0xFFFF});
}

class DeviceTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (is_fake()) {
      device_ = std::make_unique<FakeDevice>(3);
      stream_ = device_->make_stream();
      return;
    }
    try {
      module_ = open_device_module(cuda_module());
      module_->count();
    } catch (const ResourceMissing& e) {
      GTEST_SKIP() << e.what();
    }
    device_ = module_->open(0);
    stream_ = device_->make_stream();
  }

  bool is_fake() const { return GetParam() == Kind::kFake; }

  std::unique_ptr<DeviceBuffer> put_bytes(std::span<const std::byte> bytes) {
    auto buffer = device_->allocate(bytes.size());
    device_->copy_in(*stream_, buffer->data(), bytes);
    stream_->synchronize();
    return buffer;
  }
  template <typename T>
  std::unique_ptr<DeviceBuffer> put(const std::vector<T>& values) {
    return put_bytes(std::as_bytes(std::span(values)));
  }

  template <typename T = float>
  std::vector<T> get(DeviceBuffer& buffer) {
    std::vector<T> values(buffer.size() / sizeof(T));
    device_->copy_out(*stream_, std::as_writable_bytes(std::span(values)), buffer.data());
    stream_->synchronize();
    return values;
  }

  std::unique_ptr<DeviceModule> module_;  // of a GPU
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceStream> stream_;
};

}  // namespace headrace::test
