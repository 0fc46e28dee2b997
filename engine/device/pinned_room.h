// Host memory that copies go to and from directly, of as many bytes as are wanted at a time.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "engine/device/device.h"

namespace headrace {

// One thread uses it. `device` must outlive it.
class PinnedRoom {
 public:
  // What room for so many bytes takes.
  static constexpr size_t size_for(size_t bytes) {
    size_t size = kLeast;
    while (size < bytes) size *= 2;
    return size;
  }

  explicit PinnedRoom(Device& device) : device_(&device) {}

  // Content is lost where there was room for fewer, so that no copy may be under way then. Throws
  // what pinning throws, std::bad_alloc.
  std::span<std::byte> of(size_t bytes) {
    if (bytes > size_) {
      pin_.reset();
      size_ = 0;
      const size_t size = size_for(bytes);
      memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAligned, size)));
      if (!memory_) throw std::bad_alloc();
      pin_ = device_->pin({memory_.get(), size});
      size_ = size;
    }
    return {memory_.get(), bytes};
  }

 private:
  static constexpr size_t kAligned = 4096;  // no page of it is pinned for somebody else
  static constexpr size_t kLeast = 16 << 10;

  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  Device* device_;
  std::unique_ptr<std::byte, Free> memory_;
  std::unique_ptr<DevicePin> pin_;  // goes before the memory
  size_t size_ = 0;
};

}  // namespace headrace
