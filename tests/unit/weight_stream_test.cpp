#include "engine/memory/weight_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/checkpoint/checkpoint.h"
#include "engine/error.h"

namespace headrace {
namespace {

constexpr uint64_t kPlenty = uint64_t{1} << 30;

TEST(MemoryBudget, ARingIsThereTwiceAndCountedOnce) {
  MemoryBudget budget("host memory", 20000);
  {
    Buffer ring = budget.allocate_ring(10000, "ring");
    ASSERT_EQ(ring.size(), 12288u);
    EXPECT_EQ(budget.used(), 12288u);
    for (size_t i = 0; i < 2 * ring.size(); ++i) ring.data()[i] = std::byte(i % 251);
    for (size_t i = 0; i < ring.size(); ++i) {
      ASSERT_EQ(ring.data()[i], std::byte((i + ring.size()) % 251)) << i;
    }
    const Buffer moved = std::move(ring);
    EXPECT_EQ(budget.used(), 12288u);
  }
  EXPECT_EQ(budget.used(), 0u);
  EXPECT_THROW(budget.allocate_ring(20001, "ring"), DoesNotFit);
  EXPECT_EQ(budget.used(), 0u);
}

// Layers of several megabytes, which take many reads.
class WeightStreamTest : public testing::Test {
 protected:
  const std::unique_ptr<Checkpoint> model_ = Checkpoint::open("synthetic:smollm2-135m:q8");
  const StageRange range_{10, 14, false, false};
  const WeightLayout layout_ = weight_layout(*model_, range_);
  MemoryBudget budget_{"host memory", kPlenty};
  ThreadPool threads_{2, 0};
  const std::unique_ptr<OffloadFile> file_ =
      OffloadFile::open_or_build({testing::TempDir() + "weight_stream", UINT64_MAX}, *model_,
                                 range_, layout_, budget_, threads_, [](const std::string&) {});
};

// Ring, reading ahead, method.
class WeightStreamRing : public WeightStreamTest,
                         public testing::WithParamInterface<std::tuple<uint64_t, bool, IoMethod>> {
};

TEST_P(WeightStreamRing, EveryByteIsRightFromItsAwaitToItsDone) {
  const auto [ring, ahead, method] = GetParam();
  std::vector<std::vector<std::byte>> images;
  std::vector<WeightPiece> pieces;
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const uint64_t bytes = layout_.units[u].image_bytes;
    ASSERT_GT(bytes, 8 * kReadBlock);
    images.emplace_back(bytes);
    pack_image(*model_, layout_.units[u], 0, images.back(), threads_);
    // Of different lengths; the last one to the image's end, which is no multiple of a block.
    const uint64_t to = u + 1 < layout_.units.size() ? (5 + 3 * u) * kReadBlock : bytes;
    pieces.push_back({u, std::min(to, bytes)});
  }
  WeightStream stream(*file_, pieces, ring, make_io_queue(4, method), budget_, threads_, ahead);

  std::mt19937 random(11);
  int used = 0;
  for (size_t visit = 0; visit < 12 * pieces.size(); ++visit) {
    const size_t p = visit % pieces.size();
    if (random() % 5 == 0) continue;  // left out
    ++used;
    stream.acquire(p);
    const uint64_t length = pieces[p].bytes;
    uint64_t done = 0;
    for (uint64_t at = 0; at < length;) {
      const uint64_t most = std::min(length / 3, ring - kReadBlock - kIoAlignment);
      const uint64_t next = std::min(length, at + 1 + random() % most);
      if (next - done > most) stream.done(done = at);
      const uint64_t there = stream.await(next);
      ASSERT_GE(there, next);
      ASSERT_LE(there, length);
      const std::byte* memory = stream.memory(at);
      ASSERT_TRUE(std::equal(memory, memory + (there - at), images[p].begin() + at))
          << "visit " << visit << ", bytes " << at << " to " << there;
      if (random() % 2 == 0) stream.done(done = next);
      at = next;
    }
    stream.release(p);
  }
  EXPECT_GT(used, 30);
}

// A plan whose ring is too small must not wait for ever.
TEST_F(WeightStreamTest, WhatCannotComeIsNotWaitedFor) {
  const std::vector<WeightPiece> pieces = {{0, 8 * kReadBlock}};
  WeightStream stream(*file_, pieces, 4 * kReadBlock, make_io_queue(4), budget_, threads_, true);
  stream.acquire(0);
  EXPECT_GE(stream.await(4 * kReadBlock), 4 * kReadBlock);
  EXPECT_THROW(stream.await(4 * kReadBlock + 1), std::logic_error);
}

INSTANTIATE_TEST_SUITE_P(
    Rings, WeightStreamRing,
    testing::Combine(testing::Values(2 * kReadBlock, 7 * kReadBlock, 40 * kReadBlock),
                     testing::Bool(), testing::Values(IoMethod::kAuto, IoMethod::kThreads)));

}  // namespace
}  // namespace headrace
