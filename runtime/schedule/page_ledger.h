// How many KV pages are taken, where sequences may have pages in common.
#pragma once

#include <cstdint>
#include <vector>

namespace headrace {

// The pages of every slot: those that the stages have filled, and those that a sequence will fill
// until its end. A page that several slots have counts once. A slot is busy, or kept for what it
// holds: it can be released when its pages are wanted.
class PageLedger {
 public:
  PageLedger(int64_t pages, int slots);

  // Pages that no slot has.
  int64_t free_pages() const { return total_ - std::ssize(users_) + std::ssize(free_); }
  // The slot's.
  int64_t pages(int slot) const { return std::ssize(slots_[slot].pages); }
  // Whether a slot that has the first `shared` pages of `from` can have `pages` of them in all once
  // every kept slot has been released.
  bool fits(int from, int64_t shared, int64_t pages) const;

  // Pages [first, end) of `slot`, which is busy and has `first` at least, are those of `from`.
  void share(int slot, int from, int64_t first, int64_t end);
  // New ones, up to `pages` in all. Throws std::logic_error if there are too few.
  void grow(int slot, int64_t pages);
  // The slot is kept, with its first pages.
  void keep(int slot, int64_t pages);
  void release(int slot);

 private:
  struct Users {
    int32_t busy = 0, kept = 0;  // slots that have the page
  };
  struct Slot {
    std::vector<int32_t> pages;  // numbers
    bool kept = false;
  };
  void take(int32_t page, bool kept);
  void give_back(int32_t page, bool kept);
  void cut(Slot& slot, int64_t pages);

  int64_t total_;
  int64_t busy_ = 0;           // pages that busy slots have
  std::vector<Users> users_;   // by number, as far as there have been pages
  std::vector<int32_t> free_;  // numbers
  std::vector<Slot> slots_;
};

}  // namespace headrace
