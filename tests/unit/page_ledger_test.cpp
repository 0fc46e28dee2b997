#include "runtime/schedule/page_ledger.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace headrace {
namespace {

TEST(PageLedger, APageOfSeveralSlotsCountsOnce) {
  PageLedger ledger(10, 3);
  ledger.grow(0, 6);
  EXPECT_EQ(ledger.free_pages(), 4);
  EXPECT_FALSE(ledger.fits(-1, 0, 5));
  EXPECT_TRUE(ledger.fits(0, 3, 7));
  EXPECT_FALSE(ledger.fits(0, 3, 8));
  ledger.share(1, 0, 0, 3);
  ledger.grow(1, 7);
  EXPECT_EQ(ledger.free_pages(), 0);
  EXPECT_THROW(ledger.grow(2, 1), std::logic_error);
  ledger.release(0);
  EXPECT_EQ(ledger.free_pages(), 3);
  EXPECT_EQ(ledger.pages(1), 7);
  ledger.release(1);
  EXPECT_EQ(ledger.free_pages(), 10);
}

TEST(PageLedger, PagesInPlaceOfASlotsOwnAreFreed) {
  PageLedger ledger(20, 2);
  ledger.grow(0, 8);
  ledger.grow(1, 10);
  ledger.share(1, 0, 0, 2);
  EXPECT_EQ(ledger.free_pages(), 4);
  ledger.share(1, 0, 2, 5);
  EXPECT_EQ(ledger.free_pages(), 7);
  EXPECT_EQ(ledger.pages(1), 10);
}

TEST(PageLedger, KeptPagesAreThereForOthers) {
  PageLedger ledger(10, 3);
  ledger.grow(0, 8);
  ledger.keep(0, 6);
  EXPECT_EQ(ledger.free_pages(), 4);
  EXPECT_TRUE(ledger.fits(-1, 0, 10));
  EXPECT_TRUE(ledger.fits(0, 5, 10)) << "those shared are five of the ten";
  EXPECT_FALSE(ledger.fits(0, 5, 11));
  ledger.share(1, 0, 0, 5);
  ledger.release(0);
  EXPECT_EQ(ledger.free_pages(), 5);
  ledger.grow(1, 10);
  EXPECT_FALSE(ledger.fits(-1, 0, 1));
}

// Beside sets of pages that are drawn up anew for every question.
TEST(PageLedger, AgreesWithSets) {
  constexpr int kSlots = 6;
  constexpr int64_t kPages = 40;
  std::mt19937_64 random(11);
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  PageLedger ledger(kPages, kSlots);
  std::map<int, std::vector<int>> held;
  std::set<int> kept;
  int next = 0, refused = 0;
  const auto in_use = [&](bool busy_only) {
    std::set<int> pages;
    for (const auto& [slot, numbers] : held) {
      if (!busy_only || !kept.contains(slot)) pages.insert(numbers.begin(), numbers.end());
    }
    return pages;
  };
  for (int turn = 0; turn < 20000; ++turn) {
    const auto slot = static_cast<int>(below(kSlots));
    if (!held[slot].empty()) {
      if (below(3) == 0 && !kept.contains(slot)) {
        const int64_t left = 1 + below(std::ssize(held[slot]));
        ledger.keep(slot, left);
        held[slot].resize(static_cast<size_t>(left));
        kept.insert(slot);
      } else if (below(2)) {
        ledger.release(slot);
        held[slot].clear();
        kept.erase(slot);
      }
    } else {
      const auto from = static_cast<int>(below(kSlots));
      const int64_t shared = from == slot ? 0 : below(std::ssize(held[from]) + 1);
      const int64_t pages = shared + 1 + below(12);
      std::set<int> wanted = in_use(true);
      wanted.insert(held[from].begin(), held[from].begin() + shared);
      const bool fits = std::ssize(wanted) + pages - shared <= kPages;
      ASSERT_EQ(ledger.fits(from, shared, pages), fits);
      refused += !fits;
      if (pages - shared <= ledger.free_pages()) {
        ledger.share(slot, from, 0, shared);
        ledger.grow(slot, pages);
        held[slot].assign(held[from].begin(), held[from].begin() + shared);
        while (std::ssize(held[slot]) < pages) held[slot].push_back(next++);
      }
    }
    ASSERT_EQ(ledger.free_pages(), kPages - std::ssize(in_use(false)));
  }
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace headrace
