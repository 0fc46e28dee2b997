#include "runtime/schedule/page_ledger.h"

#include <algorithm>
#include <stdexcept>

namespace headrace {

PageLedger::PageLedger(int64_t pages, int slots) : total_(pages), slots_(slots) {}

bool PageLedger::fits(int from, int64_t shared, int64_t pages) const {
  int64_t more = pages;
  for (int64_t i = 0; i < shared; ++i) more -= users_[slots_[from].pages[i]].busy > 0;
  return busy_ + more <= total_;
}

void PageLedger::share(int slot, int from, int64_t first, int64_t end) {
  std::vector<int32_t>& own = slots_[slot].pages;
  for (int64_t i = first; i < end; ++i) {
    const int32_t page = slots_[from].pages.at(i);
    take(page, false);
    if (i < std::ssize(own)) {
      give_back(own[i], false);
      own[i] = page;
    } else {
      own.push_back(page);
    }
  }
}

void PageLedger::grow(int slot, int64_t pages) {
  Slot& grown = slots_[slot];
  if (pages - std::ssize(grown.pages) > free_pages()) {
    throw std::logic_error("PageLedger: out of pages");
  }
  while (std::ssize(grown.pages) < pages) {
    if (free_.empty()) {
      free_.push_back(static_cast<int32_t>(users_.size()));
      users_.emplace_back();
    }
    const int32_t page = free_.back();
    free_.pop_back();
    take(page, false);
    grown.pages.push_back(page);
  }
}

void PageLedger::keep(int slot, int64_t pages) {
  Slot& kept = slots_[slot];
  cut(kept, pages);
  for (const int32_t page : kept.pages) {
    take(page, true);
    give_back(page, false);
  }
  kept.kept = true;
}

void PageLedger::release(int slot) {
  cut(slots_[slot], 0);
  slots_[slot].kept = false;
}

void PageLedger::cut(Slot& slot, int64_t pages) {
  for (; std::ssize(slot.pages) > pages; slot.pages.pop_back()) {
    give_back(slot.pages.back(), slot.kept);
  }
}

void PageLedger::take(int32_t page, bool kept) {
  if (kept) {
    ++users_[page].kept;
  } else if (++users_[page].busy == 1) {
    ++busy_;
  }
}

void PageLedger::give_back(int32_t page, bool kept) {
  Users& users = users_[page];
  if (kept) {
    --users.kept;
  } else if (--users.busy == 0) {
    --busy_;
  }
  if (users.busy + users.kept == 0) free_.push_back(page);
}

}  // namespace headrace
