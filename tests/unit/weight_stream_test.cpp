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
class WeightStreamTest : public testing::TestWithParam<std::tuple<uint64_t, bool, IoMethod>> {
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

TEST_P(WeightStreamTest, EveryByteIsRightFromItsAwaitToItsDone) {
  const auto [ahead_bytes, ahead, method] = GetParam();
  std::vector<std::vector<std::byte>> images;
  std::vector<WeightPiece> pieces;
  WeightPlacement placement;
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const uint64_t bytes = layout_.units[u].image_bytes;
    ASSERT_GT(bytes, 8 * kReadBlock);
    images.emplace_back(bytes);
    pack_image(*model_, layout_.units[u], 0, images.back(), threads_);
    // Of different lengths; the last one to the image's end, which is no multiple of a block.
    const uint64_t to = u + 1 < layout_.units.size() ? (5 + 3 * u) * kReadBlock : bytes;
    pieces.push_back({u, 0, std::min(to, bytes), 0, 0});
    placement.piece_bytes =
        std::max(placement.piece_bytes, (pieces.back().to / kReadBlock + 1) * kReadBlock);
  }
  placement.ahead_bytes = ahead_bytes;
  WeightStream stream(*file_, pieces, placement, make_io_queue(4, method), budget_, threads_,
                      ahead);

  std::mt19937 random(11);
  int used = 0;
  for (size_t visit = 0; visit < 12 * pieces.size(); ++visit) {
    const size_t p = visit % pieces.size();
    if (random() % 5 == 0) continue;  // left out
    ++used;
    const std::byte* memory = stream.acquire(p);
    const uint64_t length = pieces[p].to - pieces[p].from;
    for (uint64_t at = 0; at < length;) {
      const uint64_t next = std::min(length, at + 1 + random() % (length / 3));
      stream.await(next);
      ASSERT_TRUE(std::equal(memory + at, memory + next, images[p].begin() + at))
          << "visit " << visit << ", bytes " << at << " to " << next;
      if (random() % 2 == 0) stream.done(next);
      at = next;
    }
    stream.release(p);
  }
  EXPECT_GT(used, 30);
}

INSTANTIATE_TEST_SUITE_P(Rings, WeightStreamTest,
                         testing::Combine(testing::Values(0, kReadBlock, 16 * kReadBlock),
                                          testing::Bool(),
                                          testing::Values(IoMethod::kAuto, IoMethod::kThreads)));

}  // namespace
}  // namespace headrace
