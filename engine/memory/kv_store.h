// The KV cache of one stage: pages of kPageTokens tokens, a page table per slot and layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/memory/budget.h"
#include "engine/ops/attention.h"

namespace headrace {

// Not thread-safe: one thread reserves and releases, before and after a sweep.
class KvStore {
 public:
  // Room for `pages` pages per layer (a page number stands for one page in each of `layers` layers)
  // and `slots` sequences. Memory comes from `budget`, which must outlive the store.
  KvStore(const KvPageShape& shape, int layers, int64_t pages, int slots, MemoryBudget& budget);

  static uint64_t bytes_per_page(const KvPageShape& shape, int layers) {
    return shape.page_bytes() * layers;
  }
  static int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

  // Makes sure that `slot` has pages for its first `tokens` tokens. Throws std::logic_error if none
  // is left: the coordinator admits only what fits.
  void reserve(int slot, int64_t tokens);
  // Gives all pages of the slot back.
  void release(int slot);

  // Page addresses of a slot in layer `layer` (counted within the stage), in token order. Valid
  // until the slot's next reserve or release.
  std::byte* const* pages(int slot, int layer) const { return tables_[slot][layer].data(); }

  const KvPageShape& shape() const { return shape_; }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }

 private:
  KvPageShape shape_;
  int layers_;
  int64_t page_count_;
  Buffer arena_;                                              // [layers][pages][page_bytes]
  std::vector<int64_t> free_;                                 // page numbers
  std::vector<std::vector<int64_t>> owned_;                   // [slot]
  std::vector<std::vector<std::vector<std::byte*>>> tables_;  // [slot][layer]
};

}  // namespace headrace
