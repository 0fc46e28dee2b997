// Pieces of pinned memory on their way: none is used again before its copy is over.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "engine/device/pinned_room.h"
#include "tests/device/fake_device.h"

namespace headrace {
namespace {

constexpr size_t kLargest = 200 << 10;

TEST(PinnedRing, WhatIsOnItsWayStays) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    test::FakeDevice device(seed);
    const auto stream = device.make_stream();
    PinnedRing ring(device, kLargest);
    std::mt19937_64 random(seed);
    constexpr int kPieces = 60;
    std::vector<size_t> sizes;
    std::vector<std::unique_ptr<DeviceBuffer>> copies;
    for (int i = 0; i < kPieces; ++i) {
      sizes.push_back(1 + random() % kLargest);
      const std::span<std::byte> piece = ring.take(sizes.back());
      ASSERT_EQ(piece.size(), sizes.back());
      std::memset(piece.data(), i, piece.size());
      copies.push_back(device.allocate(piece.size()));
      device.copy_in(*stream, copies.back()->data(), piece);
      ring.sent(*stream);
      if (random() % 8 == 0) ring.take(1 + random() % kLargest);  // whose copy was never queued
    }
    stream->synchronize();
    for (int i = 0; i < kPieces; ++i) {
      const auto* const bytes = copies[static_cast<size_t>(i)]->as<uint8_t>();
      ASSERT_EQ(bytes[0], i);
      ASSERT_EQ(bytes[sizes[static_cast<size_t>(i)] - 1], i);
    }
    EXPECT_EQ(device.unpinned(), 0U);
  }
}

TEST(PinnedRing, SeveralLargestPiecesAreOnTheirWayAtOnce) {
  test::FakeDevice device(1);
  const auto stream = device.make_stream();
  PinnedRing ring(device, kLargest);
  const auto to = device.allocate(kLargest);
  device.hold(*stream);
  const auto send = [&] {
    device.copy_in(*stream, to->data(), ring.take(kLargest));
    ring.sent(*stream);
  };
  for (int i = 0; i < 3; ++i) send();
  EXPECT_THROW(send(), std::logic_error) << "the first one is still on its way";
  device.let_go();
  send();
  stream->synchronize();
  EXPECT_THROW(ring.take(PinnedRing::size_for(kLargest) + 1), std::logic_error);
}

}  // namespace
}  // namespace headrace
