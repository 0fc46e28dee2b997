#include "engine/memory/kv_store.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "engine/error.h"

namespace headrace {
namespace {

constexpr KvPageShape kShape{2, 24, KvFormat::kF16};
constexpr int kLayers = 3;

TEST(KvStore, TakesTheBytesItSays) {
  MemoryBudget budget("host memory", 1 << 24);
  {
    const KvStore store(kShape, kLayers, 50, 4, budget);
    const uint64_t bytes = KvStore::bytes_per_page(kShape, kLayers) * 50;
    EXPECT_GE(budget.used(), bytes);
    EXPECT_LT(budget.used(), bytes + 4096);
    EXPECT_EQ(store.free_pages(), 50);
  }
  EXPECT_EQ(budget.used(), 0u);
}

TEST(KvStore, ABudgetThatIsTooSmallIsRefused) {
  MemoryBudget budget("host memory", KvStore::bytes_per_page(kShape, kLayers) * 10);
  EXPECT_THROW(KvStore(kShape, kLayers, 40, 4, budget), DoesNotFit);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(KvStore, PagesForTokens) {
  EXPECT_EQ(KvStore::pages_for(0), 0);
  EXPECT_EQ(KvStore::pages_for(1), 1);
  EXPECT_EQ(KvStore::pages_for(kPageTokens), 1);
  EXPECT_EQ(KvStore::pages_for(kPageTokens + 1), 2);
}

TEST(KvStore, ReservingGrowsOnlyAsFarAsNeeded) {
  MemoryBudget budget("host memory", 1 << 24);
  KvStore store(kShape, kLayers, 10, 2, budget);
  store.reserve(0, 1);
  EXPECT_EQ(store.free_pages(), 9);
  std::byte* const first = store.pages(0, 1)[0];
  store.reserve(0, 16);
  EXPECT_EQ(store.free_pages(), 9);
  store.reserve(0, 17);
  EXPECT_EQ(store.free_pages(), 8);
  EXPECT_EQ(store.pages(0, 1)[0], first) << "a page moved";
  store.reserve(0, 5);  // less than it has
  EXPECT_EQ(store.free_pages(), 8);
  store.release(0);
  EXPECT_EQ(store.free_pages(), 10);
  store.release(0);  // holds nothing now
  EXPECT_EQ(store.free_pages(), 10);
}

TEST(KvStore, RunningOutIsAnErrorOfTheProgram) {
  MemoryBudget budget("host memory", 1 << 24);
  KvStore store(kShape, kLayers, 3, 2, budget);
  store.reserve(0, 2 * kPageTokens);
  EXPECT_THROW(store.reserve(1, 2 * kPageTokens), std::logic_error);
}

// Random reserves and releases; every page of every slot and layer holds what was written to it, so
// no two overlap and none leaves the arena (which a sanitizer build would see).
TEST(KvStore, PagesNeverOverlap) {
  MemoryBudget budget("host memory", 1 << 24);
  constexpr int64_t kPages = 40;
  constexpr int kSlots = 6;
  KvStore store(kShape, kLayers, kPages, kSlots, budget);
  std::mt19937_64 random(3);
  std::map<int, int64_t> held;  // pages by slot
  const auto fill = [](int slot, int layer, int64_t page) {
    return static_cast<int>((slot * 7 + layer) * 31 + page) & 0xFF;
  };
  int refused = 0;
  for (int turn = 0; turn < 5000; ++turn) {
    const int slot = static_cast<int>(random() % kSlots);
    if (random() % 4 == 0) {
      store.release(slot);
      held.erase(slot);
    } else {
      const int64_t tokens = static_cast<int64_t>(random() % (20 * kPageTokens)) + 1;
      const int64_t more = std::max<int64_t>(KvStore::pages_for(tokens) - held[slot], 0);
      if (more > store.free_pages()) {
        ++refused;
        continue;
      }
      store.reserve(slot, tokens);
      for (int64_t page = held[slot]; page < held[slot] + more; ++page) {
        for (int layer = 0; layer < kLayers; ++layer) {
          std::memset(store.pages(slot, layer)[page], fill(slot, layer, page), kShape.page_bytes());
        }
      }
      held[slot] += more;
    }
    int64_t in_use = 0;
    std::set<const std::byte*> addresses;
    for (const auto& [s, pages] : held) {
      in_use += pages;
      for (int layer = 0; layer < kLayers; ++layer) {
        for (int64_t page = 0; page < pages; ++page) {
          const std::byte* at = store.pages(s, layer)[page];
          EXPECT_TRUE(addresses.insert(at).second);
          ASSERT_EQ(std::to_integer<int>(at[0]), fill(s, layer, page));
          ASSERT_EQ(std::to_integer<int>(at[kShape.page_bytes() - 1]), fill(s, layer, page));
        }
      }
    }
    ASSERT_EQ(store.free_pages(), kPages - in_use);
  }
  EXPECT_GT(refused, 100) << "the store was never full";
}

}  // namespace
}  // namespace headrace
