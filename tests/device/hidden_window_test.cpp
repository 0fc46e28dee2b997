// Hidden states that pass through a device, on one that does its work in any order that streams and
// events allow: each layer finds what the one before has made of them, and the host gets the last.
#include "engine/device/hidden_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"

namespace headrace {
namespace {

using test::FakeDevice;

constexpr int64_t kPieceRows = 3, kWidth = 5;
constexpr int kLayers = 4, kSweeps = 3;

std::vector<int64_t> random_pieces(Random& random) {
  std::vector<int64_t> pieces(static_cast<size_t>(1 + random.below(9)));
  for (int64_t& rows : pieces) rows = 1 + random.below(kPieceRows);
  return pieces;
}

std::vector<float> random_rows(Random& random, int64_t rows) {
  std::vector<float> values(static_cast<size_t>(rows * kWidth));
  for (float& x : values) x = static_cast<float>(random.below(100));
  return values;
}

// Sweeps of random pieces, in which each layer doubles what there is and adds one; whether the host
// ends up with that. In some, ops make the rows themselves, and the host's say nothing.
bool is_right(uint64_t seed, FakeDevice::Fault fault = FakeDevice::Fault::kNone) {
  FakeDevice device(seed, fault);
  Random random(seed);
  const int64_t places = HiddenWindow::kLeastPlaces + random.below(3);
  const auto compute = device.make_stream();
  const auto room =
      device.allocate(static_cast<size_t>(places * kPieceRows * kWidth) * sizeof(float));
  const std::vector<float> one(kPieceRows * kWidth, 1.0f);
  const auto ones = device.allocate(one.size() * sizeof(float));
  device.copy_in(*compute, ones->data(), std::as_bytes(std::span(one)));
  HiddenWindow window(device, *compute, {room->as<float>(), room->size() / sizeof(float)},
                      kPieceRows, kWidth);
  bool right = window.rows_at_once() == places * kPieceRows;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    const std::vector<int64_t> pieces = random_pieces(random);
    const std::vector<float> rows =
        random_rows(random, std::accumulate(pieces.begin(), pieces.end(), int64_t{0}));
    const bool are_made = random.below(2) == 0;
    std::vector<float> host = are_made ? std::vector<float>(rows.size(), kNan) : rows;
    // Others use the room between sweeps.
    device.copy_in(*compute, room->data(), std::as_bytes(std::span(one)));
    window.begin_sweep(host.data(), pieces, kLayers, are_made);
    for (int layer = 0; layer < kLayers; ++layer) {
      int64_t done = 0;
      for (const int64_t count : pieces) {
        float* const x = window.acquire();
        if (are_made && layer == 0) {
          device.copy_in(
              *compute, reinterpret_cast<std::byte*>(x),
              std::as_bytes(std::span(rows))
                  .subspan(done * kWidth * sizeof(float), count * kWidth * sizeof(float)));
        }
        device.add(*compute, x, x, count, kWidth);
        device.add(*compute, x, ones->as<float>(), count, kWidth);
        window.release();
        done += count;
      }
    }
    window.end_sweep();
    for (size_t i = 0; i < rows.size(); ++i) {
      const float layers = 1 << kLayers;
      right &= host[i] == layers * rows[i] + layers - 1;
    }
  }
  return right;
}

TEST(HiddenWindow, EachLayerFindsWhatTheLastOneMade) {
  for (uint64_t seed = 0; seed < 400; ++seed) ASSERT_TRUE(is_right(seed)) << "seed " << seed;
}

// The first test sees waits that are missing.
TEST(HiddenWindow, NothingWorksWithoutWaits) {
  bool right = true;
  for (uint64_t seed = 0; seed < 20 && right; ++seed) {
    right = is_right(seed, FakeDevice::Fault::kStreamsDoNotWait);
  }
  EXPECT_FALSE(right);
}

// While a micro-batch computes all other places but one are filled.
TEST(HiddenWindow, CopiesRunAheadOfKernels) {
  FakeDevice device(1);
  const auto compute = device.make_stream(), other = device.make_stream();
  const auto room = device.allocate(3 * kPieceRows * kWidth * sizeof(float));
  HiddenWindow window(device, *compute, {room->as<float>(), 3 * kPieceRows * kWidth}, kPieceRows,
                      kWidth);
  std::vector<float> host(4 * kPieceRows * kWidth, 7.0f);
  window.begin_sweep(host.data(), std::vector<int64_t>(4, kPieceRows), 2, false);
  const float* const x = window.acquire();
  device.hold(*compute);
  std::vector<float> next(2, 0.0f);
  for (int i = 0; i < 50 && next != std::vector<float>(2, 7.0f); ++i) {
    for (int64_t p : {1, 2}) {
      device.copy_out(*other, std::as_writable_bytes(std::span(next).subspan(p - 1, 1)),
                      reinterpret_cast<const std::byte*>(x + p * kPieceRows * kWidth));
    }
    other->synchronize();
  }
  EXPECT_EQ(next, std::vector<float>(2, 7.0f));
  device.let_go();
  for (int piece = 0; piece < 8; ++piece) {
    if (piece > 0) window.acquire();
    window.release();
  }
  window.end_sweep();
}

TEST(HiddenWindow, PiecesThatAreNotThereAreErrors) {
  FakeDevice device(1);
  const auto compute = device.make_stream();
  const auto room = device.allocate(3 * kPieceRows * kWidth * sizeof(float));
  const std::span<float> floats{room->as<float>(), 3 * kPieceRows * kWidth};
  EXPECT_THROW(HiddenWindow(device, *compute, floats.first(floats.size() - 1), kPieceRows, kWidth),
               std::logic_error);
  HiddenWindow window(device, *compute, floats, kPieceRows, kWidth);
  std::vector<float> host(2 * kPieceRows * kWidth);
  EXPECT_THROW(window.begin_sweep(host.data(), {kPieceRows + 1}, 1, false), std::logic_error);
  window.begin_sweep(host.data(), {kPieceRows, 1}, 1, false);
  window.acquire();
  window.release();
  EXPECT_THROW(window.end_sweep(), std::logic_error) << "one is left";
  window.acquire();
  window.release();
  window.end_sweep();
  EXPECT_THROW(window.acquire(), std::logic_error);
}

}  // namespace
}  // namespace headrace
