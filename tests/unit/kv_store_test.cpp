#include "engine/memory/kv_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "engine/error.h"
#include "engine/io/io_queue.h"

namespace headrace {
namespace {

constexpr KvPageShape kShape{2, 24, KvFormat::kF16};
constexpr int kLayers = 3;

std::byte* page_of(const KvStore& store, int slot, int layer, int64_t page) {
  return store.pages(slot, layer)[page] + store.shape(layer).page_offset;
}

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

// They take memory that no budget has.
TEST(KvStore, PageTablesAreOfAllLayers) {
  MemoryBudget budget("host memory", 1 << 24);
  KvStore store(kShape, kLayers, 10, 2, budget);
  store.reserve(1, 40);
  std::set<std::byte*> places;
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_EQ(store.pages(1, layer), store.pages(1, 0));
    for (int page = 0; page < 3; ++page) {
      places.insert(page_of(store, 1, layer, page));
    }
  }
  EXPECT_EQ(places.size(), 3U * kLayers);
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
          std::memset(page_of(store, slot, layer, page), fill(slot, layer, page),
                      kShape.page_bytes());
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
          const std::byte* at = page_of(store, s, layer, page);
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

// Tables of all layers in one, and a table for each.
TEST(KvStore, ASharedPageIsFreeWhenNobodyHasItAnyMore) {
  MemoryBudget budget("host memory", 1 << 24);
  std::byte memory[1];  // only ever pointed to
  KvStore own(kShape, kLayers, 10, 3, budget), arena(kShape, kLayers, 3, KvArena{memory, 10});
  for (KvStore* const store : {&own, &arena}) {
    for (const bool donor_first : {true, false}) {
      store->reserve(0, 5 * kPageTokens);
      store->share(1, 0, 3);
      store->share(2, 1, 2);
      EXPECT_EQ(store->free_pages(), 5) << "pages that are shared count once";
      store->reserve(1, 3 * kPageTokens + 1);
      EXPECT_EQ(store->free_pages(), 4);
      for (int layer = 0; layer < kLayers; ++layer) {
        std::byte* const* const donor = store->pages(0, layer);
        EXPECT_TRUE(std::equal(donor, donor + 3, store->pages(1, layer)));
        EXPECT_TRUE(std::equal(donor, donor + 2, store->pages(2, layer)));
        EXPECT_NE(store->pages(1, layer)[3], donor[3]);
      }
      store->release(donor_first ? 0 : 2);
      EXPECT_EQ(store->free_pages(), donor_first ? 6 : 4);
      store->release(1);
      EXPECT_EQ(store->free_pages(), donor_first ? 8 : 5);
      store->release(donor_first ? 2 : 0);
      EXPECT_EQ(store->free_pages(), 10);
    }
  }
}

TEST(KvStore, MorePagesAreTakenOverThanBefore) {
  MemoryBudget budget("host memory", 1 << 24);
  KvStore store(kShape, kLayers, 10, 3, budget);
  store.reserve(0, 2 * kPageTokens);
  store.reserve(1, 4 * kPageTokens);
  store.share(2, 0, 1);
  store.share(2, 1, 4);
  EXPECT_EQ(store.pages(2, 1)[0], store.pages(0, 1)[0]) << "what it had stays";
  EXPECT_EQ(store.pages(2, 1)[1], store.pages(1, 1)[1]);
  store.release(0);
  store.release(1);
  EXPECT_EQ(store.free_pages(), 6);
}

TEST(KvStore, PagesThatAreNotThereAreNotShared) {
  MemoryBudget budget("host memory", 1 << 24);
  KvStore store(kShape, kLayers, 10, 2, budget);
  store.reserve(0, 2 * kPageTokens);
  EXPECT_THROW(store.share(1, 0, 3), std::logic_error);
  EXPECT_THROW(store.share(0, 0, 1), std::logic_error);
  EXPECT_THROW(store.share(1, 7, 1), std::logic_error);
  EXPECT_THROW(store.share(-1, 0, 1), std::logic_error);
  EXPECT_EQ(store.free_pages(), 8);
}

// Random sequences that branch off others; every page is that of all who share it, and free again
// when the last of them has gone.
TEST(KvStore, SharedPagesAreThoseOfWhomTheyCameFrom) {
  MemoryBudget budget("host memory", 1 << 24);
  constexpr int64_t kPages = 40;
  constexpr int kSlots = 6;
  KvStore store(kShape, kLayers, kPages, kSlots, budget);
  std::mt19937_64 random(8);
  std::map<int, std::vector<std::byte*>> held;  // in layer 1
  int shared = 0;
  for (int turn = 0; turn < 5000; ++turn) {
    const auto slot = static_cast<int>(random() % kSlots),
               from = static_cast<int>(random() % kSlots);
    std::vector<std::byte*>& pages = held[slot];
    if (random() % 3 == 0) {
      store.release(slot);
      pages.clear();
    } else if (pages.empty() && from != slot && !held[from].empty()) {
      const size_t common = 1 + random() % held[from].size();
      store.share(slot, from, static_cast<int64_t>(common));
      pages.assign(held[from].begin(), held[from].begin() + static_cast<std::ptrdiff_t>(common));
      ++shared;
    } else if (store.free_pages() > 0) {
      store.reserve(slot, std::ssize(pages) * kPageTokens + 1);
      pages.push_back(store.pages(slot, 1)[pages.size()]);
      for (const auto& [other, others] : held) {
        ASSERT_TRUE(other == slot || std::ranges::count(others, pages.back()) == 0);
      }
    }
    std::set<std::byte*> all;
    for (const auto& [s, own] : held) {
      ASSERT_TRUE(std::equal(own.begin(), own.end(), store.pages(s, 1)));
      all.insert(own.begin(), own.end());
    }
    ASSERT_EQ(store.free_pages(), kPages - std::ssize(all));
  }
  EXPECT_GT(shared, 300);
}

// What a token's K and V are in these tests: the same byte all over its place in the page.
std::byte mark(int slot, int layer, int64_t position) {
  return static_cast<std::byte>((slot * 7 + layer) * 31 + position * 3 + 1);
}

// Sequences of random lengths that grow by random steps, through sweeps as the engine makes them.
class Sweeps {
 public:
  Sweeps(int64_t memory_pages, int64_t step_rows, bool ahead)
      : step_rows_(step_rows),
        budget_("host memory", 1 << 24),
        store_(kShape, kLayers, memory_pages, kSlots, step_rows, disk(ahead), budget_) {}

  void run(int steps) {
    for (int step = 0; step < steps; ++step) {
      const std::vector<BatchItem> batch = random_batch();
      for (const BatchItem& item : batch)
        store_.reserve(item.slot, item.first_position + item.rows);
      const std::vector<KvVisit> visits = cut(batch);
      store_.begin_sweep(visits);
      for (int layer = 0; layer < kLayers; ++layer) {
        for (size_t v = 0; v < visits.size(); ++v) {
          store_.acquire(layer, v);
          for (const BatchItem& item : visits[v]) use(item, layer);
          store_.release(layer, v);
        }
      }
      for (const BatchItem& item : batch) lengths_[item.slot] += item.rows;
    }
  }
  int64_t from_disk() const { return from_disk_; }

 private:
  static constexpr int kSlots = 6;
  static constexpr int64_t kLongest = 9 * kPageTokens;

  static KvDiskOptions disk(bool ahead) {
    KvDiskOptions options;
    options.directory = testing::TempDir();
    options.make_queue = [] { return make_io_queue(8); };
    options.pages = kSlots * kLongest / kPageTokens;
    options.staging_pages = kLongest / kPageTokens;
    options.ahead = ahead;
    return options;
  }

  std::vector<BatchItem> random_batch() {
    std::vector<BatchItem> batch;
    int64_t room = step_rows_;
    int slot = static_cast<int>(random_() % kSlots);
    for (int i = 0; i < kSlots && room > 0; ++i, slot = (slot + 1) % kSlots) {
      if (lengths_[slot] == kLongest || random_() % 200 == 0) {
        store_.release(slot);
        lengths_[slot] = 0;
      }
      const int64_t most = std::min(room, kLongest - lengths_[slot]);
      const int64_t wanted = random_() % 3 == 0 ? 1 : 1 + static_cast<int64_t>(random_() % 40);
      if (random_() % 4 == 0) continue;
      batch.push_back({slot, lengths_[slot], std::min(most, wanted)});
      room -= batch.back().rows;
    }
    return batch;
  }

  std::vector<KvVisit> cut(std::span<const BatchItem> batch) const {
    std::vector<KvVisit> visits;
    for (size_t begin = 0, end = 0; begin < batch.size(); begin = end) {
      int64_t pages = store_.visiting_pages(batch[end++].slot);
      while (end < batch.size() &&
             (pages += store_.visiting_pages(batch[end].slot)) <= store_.visit_pages()) {
        ++end;
      }
      visits.push_back(batch.subspan(begin, end - begin));
    }
    return visits;
  }

  // Checks the tokens before the step's and writes those of the step.
  void use(const BatchItem& item, int layer) {
    const size_t token_bytes = kShape.page_bytes() / kPageTokens;
    from_disk_ += store_.visiting_pages(item.slot);
    for (int64_t i = 0; i < item.first_position + item.rows; ++i) {
      std::byte* token = page_of(store_, item.slot, layer, i / kPageTokens) +
                         static_cast<size_t>(i % kPageTokens) * token_bytes;
      const std::byte expected = mark(item.slot, layer, i);
      if (i >= item.first_position) {
        std::fill_n(token, token_bytes, expected);
      } else {
        ASSERT_EQ(token[0], expected) << item.slot << ", token " << i;
        ASSERT_EQ(token[token_bytes - 1], expected) << item.slot << ", token " << i;
      }
    }
  }

  int64_t step_rows_;
  MemoryBudget budget_;
  KvStore store_;
  std::mt19937_64 random_{5};
  int64_t lengths_[kSlots] = {};
  int64_t from_disk_ = 0;
};

// With no more pages in memory than pages_in_use() says.
TEST(KvStore, EveryTokenIsReadAsItWasWrittenFromMemoryAndDisk) {
  for (const int64_t memory_pages : {0, 7}) {
    for (const int64_t step_rows : {1, 2, 7, 32, 200}) {
      for (const bool ahead : {true, false}) {
        SCOPED_TRACE(std::to_string(memory_pages) + " pages in memory, steps of " +
                     std::to_string(step_rows) + (ahead ? "" : ", serial"));
        Sweeps sweeps(memory_pages, step_rows, ahead);
        sweeps.run(step_rows < 32 ? 600 : 100);
        EXPECT_GT(sweeps.from_disk(), 100);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Homes and nothing else.
class Homes final : public KvPassage {
 public:
  Homes(int64_t homes, int64_t whole, int64_t disk_homes)
      : homes_(homes), whole_(whole), disk_homes_(disk_homes) {}
  int64_t homes() const override { return homes_; }
  int64_t disk_homes() const override { return disk_homes_; }
  int64_t run() const override { return 2; }
  int64_t whole() const override { return whole_; }
  int64_t room() const override { return 9; }
  void begin_sweep(std::vector<std::vector<Page>> visits) override { visits_ = std::move(visits); }
  void acquire(int, size_t) override {}
  std::byte* page(int64_t) override { return nullptr; }
  void release() override {}
  std::byte* at_home(int layer, int64_t home) override {
    EXPECT_TRUE(awaited_);
    return memory_ + layer * homes_ + home;
  }
  void await_homes() override { awaited_ = true; }

  std::byte memory_[kLayers * 20];  // a byte for a page
  std::vector<std::vector<Page>> visits_;

 private:
  int64_t homes_, whole_, disk_homes_;
  bool awaited_ = false;
};

struct BesideADevice {
  static constexpr int64_t kArena = 8;
  explicit BesideADevice(int64_t homes, int64_t whole = 3, int64_t disk_homes = 0)
      : passage(homes, whole, disk_homes),
        store(kShape, kLayers, 8, KvArena{arena, kArena}, &passage) {}
  void reserve(int slot, int64_t pages) { store.reserve(slot, pages * kPageTokens); }

  std::byte arena[1];  // only ever pointed to
  Homes passage;
  KvStore store;
};

TEST(KvStore, SequencesAreAllAtHomeOrNotAtAllWhereTheHostComputesWithThem) {
  BesideADevice kv(20);
  for (const int slot : {0, 1, 2, 3}) kv.reserve(slot, 1);
  // The arena has room for two of three pages.
  EXPECT_FALSE(kv.store.is_at_home(0) || kv.store.is_at_home(1));
  EXPECT_TRUE(kv.store.is_at_home(2) && kv.store.is_at_home(3));
  for (const int slot : {2, 3, 0, 1}) kv.reserve(slot, 3);
  EXPECT_EQ(kv.store.free_pages(), 2);
  EXPECT_EQ(kv.store.visiting_pages(0), 0);
  EXPECT_TRUE(kv.store.is_at_home(2) && kv.store.is_at_home(3));
  // Pages that are given back are for one that begins.
  kv.store.release(0);
  kv.reserve(2, 4);
  EXPECT_TRUE(kv.store.is_at_home(2));
  kv.reserve(4, 1);
  EXPECT_FALSE(kv.store.is_at_home(4));
  EXPECT_EQ(kv.store.free_pages(), 4);
}

TEST(KvStore, AllPagesAreOfUseWhereTheHostComputesWithSequences) {
  BesideADevice kv(4);
  kv.reserve(0, 3);
  kv.reserve(1, 3);
  kv.reserve(2, 3);
  EXPECT_TRUE(kv.store.is_at_home(2));
  kv.reserve(2, 6);
  EXPECT_FALSE(kv.store.is_at_home(2));
  EXPECT_EQ(kv.store.visiting_pages(2), 4);
  EXPECT_EQ(kv.store.free_pages(), 0);
  EXPECT_THROW(kv.reserve(3, 1), std::logic_error);
}

TEST(KvStore, PagesAreInTheArenaFirstWhereTheHostComputesWithNone) {
  BesideADevice kv(20, 0);
  for (const int slot : {0, 1, 2, 3}) kv.reserve(slot, 2);
  EXPECT_EQ(kv.store.free_pages(), 0);
  kv.reserve(0, 3);
  EXPECT_EQ(kv.store.visiting_pages(0), 1);
  EXPECT_FALSE(kv.store.is_at_home(0));
}

TEST(KvStore, PagesThatMoveAreNotShared) {
  BesideADevice kv(20);
  kv.reserve(0, 2);
  EXPECT_THROW(kv.store.share(1, 0, 1), std::logic_error);
}

TEST(KvStore, TheHostFindsPagesAtHome) {
  BesideADevice kv(20, 100);
  kv.reserve(0, 1);
  kv.reserve(1, 3);
  const std::vector<BatchItem> visited = {{0, 3, 1}}, at_home = {{1, 40, 1}};
  kv.store.begin_sweep({visited});
  EXPECT_EQ(kv.passage.visits_.size(), 1U);
  for (int layer = 0; layer < kLayers; ++layer) {
    kv.store.acquire_at_home(layer, at_home);
    std::byte* const* const pages = kv.store.pages(1, layer);
    std::set<int64_t> homes;
    for (int page = 0; page < 3; ++page) {
      const int64_t home = pages[page] - kv.passage.memory_ - layer * kv.passage.homes();
      EXPECT_TRUE(home >= 0 && home < kv.passage.homes());
      EXPECT_NE(home, kv.passage.visits_[0][0].home);
      homes.insert(home);
    }
    EXPECT_EQ(homes.size(), 3U);
  }
}

TEST(KvStore, PagesAreOnDiskWhereDeviceAndHostHaveNoRoom) {
  BesideADevice kv(4, 3, 10);
  kv.reserve(0, 3);
  kv.reserve(1, 3);
  kv.reserve(2, 3);
  EXPECT_TRUE(kv.store.is_at_home(2));
  kv.reserve(3, 5);
  EXPECT_FALSE(kv.store.is_at_home(3));
  EXPECT_EQ(kv.store.visiting_pages(3), 3) << "the arena has two of them";
  EXPECT_EQ(kv.store.pages_at_home(3), 0);
  EXPECT_EQ(kv.store.pages_at_home(2), 3);
  const std::vector<BatchItem> visited = {{3, 70, 10}};
  kv.store.begin_sweep({visited});
  const std::vector<KvPassage::Page> pages = {
      {4, true, false, true, 3}, {5, true, false, true, 3}, {6, true, true, true, 3}};
  EXPECT_EQ(kv.passage.visits_[0], pages);
  // What is given back is on the host, or on disk, as before.
  kv.store.release(2);
  kv.reserve(4, 4);
  EXPECT_TRUE(kv.store.is_at_home(4));
  kv.store.release(3);
  kv.reserve(5, 2);
  EXPECT_EQ(kv.store.visiting_pages(5), 0);
  kv.reserve(6, 10);
  EXPECT_FALSE(kv.store.is_at_home(6));
  EXPECT_EQ(kv.store.pages_at_home(6), 0);
  EXPECT_THROW(kv.reserve(6, 11), std::logic_error);
}

}  // namespace
}  // namespace headrace
