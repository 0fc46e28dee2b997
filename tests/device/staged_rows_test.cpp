// Rows that leave a device for the CPU and come back, on one that does its work in any order that
// streams and events allow.
#include "engine/device/staged_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"

namespace headrace {
namespace {

using test::FakeDevice;

constexpr int64_t kRows = 12, kMost = 7, kQ = 6, kKv = 4;
constexpr int kRounds = 5;

std::vector<float> random_floats(Random& random, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& x : values) x = static_cast<float>(random.below(1000));
  return values;
}

// Up to kMost rows in ascending order.
std::vector<AttentionSequence> random_sequences(Random& random) {
  std::vector<AttentionSequence> sequences;
  for (int64_t row = 0; row < kRows && std::ssize(sequences) < kMost; ++row) {
    if (random.below(2) == 0) sequences.push_back({row, 1, 20 + row, nullptr});
  }
  return sequences;
}

template <typename T>
T element(float value) {
  if constexpr (std::is_same_v<T, Half>) {
    return to_half(value);
  } else {
    return value;
  }
}

// Rounds in which the CPU gets rows and gives back twice the query and one; whether it and who
// reads the output find what they should. Elements of it: floats or f16.
template <typename T>
bool is_right(uint64_t seed, FakeDevice::Fault fault = FakeDevice::Fault::kNone) {
  FakeDevice device(seed, fault);
  Random random(seed);
  MemoryBudget budget("host memory", 1 << 20);
  const StagedRows::Sizes sizes{kMost, kQ, kKv, std::is_same_v<T, Half>};
  const auto compute = device.make_stream();
  const auto q = device.allocate(kRows * kQ * sizeof(float)),
             k = device.allocate(kRows * kKv * sizeof(float)),
             v = device.allocate(kRows * kKv * sizeof(float)),
             out = device.allocate(kRows * kQ * sizeof(T));
  StagedRows rows(device, *compute, budget, sizes);
  EXPECT_EQ(StagedRows::host_bytes(sizes), kMost * 2 * (kQ + kKv) * sizeof(float));
  EXPECT_LT(budget.used(), StagedRows::host_bytes(sizes) + 4096);
  std::vector<std::vector<float>> inputs;  // stay until they are copied
  std::vector<T> expected(kRows * kQ), found(kRounds * kRows * kQ);
  std::vector<T> all_expected;
  device.copy_in(*compute, out->data(), std::as_bytes(std::span(expected)));
  bool right = true;
  inputs.reserve(3 * kRounds);
  for (int round = 0; round < kRounds; ++round) {
    const auto bring = [&](DeviceBuffer& to, int64_t width) -> const std::vector<float>& {
      inputs.push_back(random_floats(random, kRows * width));
      device.copy_in(*compute, to.data(), std::as_bytes(std::span(inputs.back())));
      return inputs.back();
    };
    const auto &of_q = bring(*q, kQ), &of_k = bring(*k, kKv), &of_v = bring(*v, kKv);
    const auto sequences = random_sequences(random);
    rows.send(sequences, q->template as<float>(), k->template as<float>(), v->template as<float>());
    const HostRows::Rows host = rows.receive();
    for (int64_t i = 0; i < std::ssize(sequences); ++i) {
      const int64_t row = sequences[static_cast<size_t>(i)].first_row;
      const auto has = [&](const float* at, const std::vector<float>& of, int64_t width) {
        return std::equal(at + i * width, at + (i + 1) * width, of.begin() + row * width);
      };
      right &= has(host.q, of_q, kQ) && has(host.k, of_k, kKv) && has(host.v, of_v, kKv);
      for (int64_t j = 0; j < kQ; ++j) {
        const float y = 2 * of_q[static_cast<size_t>(row * kQ + j)] + 1;
        host.out[i * kQ + j] = y;
        expected[static_cast<size_t>(row * kQ + j)] = element<T>(y);
      }
    }
    rows.send_back(out->template as<Operand>());
    const auto place =
        std::span(found).subspan(static_cast<size_t>(round * kRows * kQ), kRows * kQ);
    device.copy_out(*compute, std::as_writable_bytes(place), out->data());
    all_expected.insert(all_expected.end(), expected.begin(), expected.end());
  }
  compute->synchronize();
  return right && std::memcmp(found.data(), all_expected.data(), found.size() * sizeof(T)) == 0;
}

TEST(StagedRows, ArriveAndComeBack) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    ASSERT_TRUE(is_right<float>(seed)) << "seed " << seed;
    ASSERT_TRUE(is_right<Half>(seed)) << "seed " << seed;
  }
}

// The first test sees waits that are missing.
TEST(StagedRows, NothingWorksWithoutWaits) {
  for (const auto fault :
       {FakeDevice::Fault::kStreamsDoNotWait, FakeDevice::Fault::kHostDoesNotWait}) {
    bool right = true;
    for (uint64_t seed = 0; seed < 20 && right; ++seed) right = is_right<float>(seed, fault);
    EXPECT_FALSE(right);
  }
}

// The CPU need not wait for what was queued after its rows.
TEST(StagedRows, ComeBeforeWhatWasQueuedSince) {
  FakeDevice device(1);
  MemoryBudget budget("host memory", 1 << 20);
  const auto compute = device.make_stream();
  const std::vector<float> ones(kRows * kQ, 1.0f);
  const auto x = device.allocate(ones.size() * sizeof(float));
  device.copy_in(*compute, x->data(), std::as_bytes(std::span(ones)));
  StagedRows rows(device, *compute, budget, {kMost, kQ, kKv, false});
  const std::vector<AttentionSequence> one = {{3, 1, 5, nullptr}};
  rows.send(one, x->as<float>(), x->as<float>(), x->as<float>());
  device.hold(*compute);
  EXPECT_EQ(rows.receive().q[0], 1.0f);
  device.let_go();
}

TEST(StagedRows, MoreThanThereIsRoomForAreAnError) {
  FakeDevice device(1);
  MemoryBudget budget("host memory", 1 << 20);
  const auto compute = device.make_stream();
  StagedRows rows(device, *compute, budget, {1, kQ, kKv, false});
  const std::vector<AttentionSequence> two = {{0, 1, 5, nullptr}, {1, 1, 5, nullptr}};
  EXPECT_THROW(rows.send(two, nullptr, nullptr, nullptr), std::logic_error);
}

}  // namespace
}  // namespace headrace
