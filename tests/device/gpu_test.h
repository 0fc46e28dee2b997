// A test on this machine's first GPU; skipped where there is none.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <vector>

#include "engine/device/device_module.h"
#include "engine/error.h"
#include "tests/device/cuda_module.h"

namespace headrace::test {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    try {
      module_ = open_device_module(cuda_module());
      module_->count();
    } catch (const ResourceMissing& e) {
      GTEST_SKIP() << e.what();
    }
    device_ = module_->open(0);
    stream_ = device_->make_stream();
  }

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

  std::unique_ptr<DeviceModule> module_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceStream> stream_;
};

}  // namespace headrace::test
