#include "engine/memory/kv_store.h"

#include <stdexcept>

namespace headrace {

KvStore::KvStore(const KvPageShape& shape, int layers, int64_t pages, int slots,
                 MemoryBudget& budget)
    : shape_(shape),
      layers_(layers),
      page_count_(pages),
      arena_(budget.allocate(bytes_per_page(shape, layers) * pages, "KV cache")),
      owned_(slots),
      tables_(slots, std::vector<std::vector<std::byte*>>(layers)) {
  for (int64_t page = pages; page-- > 0;) free_.push_back(page);
}

void KvStore::reserve(int slot, int64_t tokens) {
  while (static_cast<int64_t>(owned_[slot].size()) < pages_for(tokens)) {
    if (free_.empty()) throw std::logic_error("KvStore: out of pages");
    const int64_t page = free_.back();
    free_.pop_back();
    owned_[slot].push_back(page);
    for (int layer = 0; layer < layers_; ++layer) {
      tables_[slot][layer].push_back(arena_.data() +
                                     (layer * page_count_ + page) * shape_.page_bytes());
    }
  }
}

void KvStore::release(int slot) {
  free_.insert(free_.end(), owned_[slot].begin(), owned_[slot].end());
  owned_[slot].clear();
  for (auto& table : tables_[slot]) table.clear();
}

}  // namespace headrace
