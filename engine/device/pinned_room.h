// Host memory that copies go to and from directly, pinned from the start: pinning may wait for all
// that a device does.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "engine/device/device.h"

namespace headrace {

// One thread uses it. `device` must outlive it.
class PinnedRoom {
 public:
  // What room for so many bytes takes.
  static constexpr size_t size_for(size_t bytes) {
    return (bytes + kAligned - 1) / kAligned * kAligned;
  }

  // Throws what pinning throws, std::bad_alloc.
  PinnedRoom(Device& device, size_t bytes);

  // The first so many of them. Throws std::logic_error if there are fewer.
  std::span<std::byte> of(size_t bytes) const;
  size_t size() const { return size_; }

 private:
  static constexpr size_t kAligned = 4096;  // no page of it is pinned for somebody else

  struct Free {
    void operator()(std::byte* memory) const;
  };
  size_t size_;
  std::unique_ptr<std::byte, Free> memory_;
  std::unique_ptr<DevicePin> pin_;  // goes before the memory
};

// Pieces of such memory for what is on its way to a device, one after the other and again from the
// start. One thread uses it. `device` must outlive it.
class PinnedRing {
 public:
  // `largest`: bytes of a piece.
  static constexpr size_t size_for(size_t largest) {
    return PinnedRoom::size_for(kLargest * aligned(largest) + kSmall);
  }
  PinnedRing(Device& device, size_t largest) : device_(device), room_(device, size_for(largest)) {}

  // Waits for copies from there. Throws std::logic_error if a piece would be too large.
  std::span<std::byte> take(size_t bytes);
  // The copy of what was taken last is queued in the stream.
  void sent(DeviceStream& stream);

 private:
  static constexpr size_t kLargest = 3, kSmall = 64 << 10, kAlignment = 64;
  static constexpr size_t aligned(size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  struct Piece {
    size_t begin, end;
    std::unique_ptr<DeviceEvent> copied;
  };
  void forget_first();

  Device& device_;
  PinnedRoom room_;
  std::deque<Piece> pieces_;  // in the order of their copies
  std::vector<std::unique_ptr<DeviceEvent>> unused_;
  size_t begin_ = 0, next_ = 0;  // of the last piece, and after it
};

}  // namespace headrace
