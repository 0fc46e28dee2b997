#include "engine/memory/kv_store.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace headrace {

KvStore::KvStore(const KvPageShape& shape, int layers, int64_t pages, int slots,
                 MemoryBudget& budget)
    : KvStore(shape, layers, slots, KvArena{nullptr, pages}) {
  shares_tables_ = false;
  memory_ = budget.allocate(bytes_per_page(shape, layers) * pages, "KV cache");
  arena_ = memory_.data();
}

KvStore::KvStore(const KvPageShape& shape, int layers, int slots, const KvArena& first,
                 const KvArena& second)
    : shape_(shape),
      layers_(layers),
      stride_(shape.page_bytes()),
      page_count_(first.pages),
      homes_(first.pages + second.pages),
      shares_tables_(true),
      arena_(first.memory),
      second_(second),
      sequences_(slots),
      tables_(slots, std::vector<std::vector<std::byte*>>(layers)) {
  for (int64_t page = homes_; page-- > 0;) free_.push_back(page);
}

std::byte* KvStore::address(int layer, int64_t number) {
  if (!shares_tables_) return arena_ + static_cast<size_t>(layer * page_count_ + number) * stride_;
  const bool is_first = number < page_count_;
  std::byte* const memory = is_first ? arena_ : second_.memory;
  const int64_t page = is_first ? number : number - page_count_;
  return memory + static_cast<size_t>(page * layers_ + layer) * stride_;
}

KvPageShape KvStore::shape(int layer) const {
  KvPageShape shape = shape_;
  if (shares_tables_) shape.page_offset = static_cast<size_t>(layer) * stride_;
  return shape;
}

KvStore::KvStore(const KvPageShape& shape, int layers, int64_t memory_pages, int slots,
                 int64_t step_rows, const KvDiskOptions& disk, MemoryBudget& budget)
    : shape_(shape),
      layers_(layers),
      stride_(io_aligned(shape.page_bytes())),
      page_count_(memory_pages + pages_in_use(slots, step_rows)),
      homes_(memory_pages),
      memory_(budget.allocate(static_cast<size_t>(page_count_ * layers) * stride_, "KV cache")),
      arena_(memory_.data()),
      disk_(std::in_place, disk, stride_, layers, slots, budget),
      sequences_(slots),
      tables_(slots, std::vector<std::vector<std::byte*>>(layers)) {
  for (int64_t page = page_count_; page-- > 0;) free_.push_back(page);
}

int64_t KvStore::pages_in_use(int slots, int64_t step_rows) {
  // Rows of a sequence touch at most 1 + (rows + 14) / 16 pages: one if there is a single row, and
  // a sequence without rows may have one that is being filled.
  const int64_t with_more = std::min<int64_t>(slots, step_rows / 2);
  return slots + (step_rows + (kPageTokens - 2) * with_more) / kPageTokens;
}

void KvStore::reserve(int slot, int64_t tokens) {
  settle();
  Sequence& sequence = sequences_[slot];
  while (static_cast<int64_t>(sequence.memory.size()) < pages_for(tokens)) {
    if (free_.empty()) throw std::logic_error("KvStore: out of pages");
    const int64_t page = free_.back();
    free_.pop_back();
    sequence.memory.push_back(page);
    const int tables = shares_tables_ ? 1 : layers_;
    for (int layer = 0; layer < tables; ++layer)
      tables_[slot][layer].push_back(address(layer, page));
  }
}

void KvStore::release(int slot) {
  settle();
  Sequence& sequence = sequences_[slot];
  for (const int64_t number : sequence.memory) {
    if (number >= 0) free_.push_back(number);
  }
  homes_taken_ -= sequence.at_home;
  if (disk_) disk_->release(slot);
  sequence = {};
  for (auto& table : tables_[slot]) table.clear();
}

void KvStore::begin_sweep(std::vector<KvVisit> visits) {
  if (!disk_) return;
  settle();
  visits_ = std::move(visits);
  std::vector<std::vector<int>> slots;
  for (const KvVisit& visit : visits_) {
    std::vector<int>& visited = slots.emplace_back();
    for (const BatchItem& item : visit) visited.push_back(item.slot);
  }
  disk_->begin_sweep(slots);
  for (const KvVisit& visit : visits_) {
    for (const BatchItem& item : visit) find_homes(item);
  }
}

void KvStore::find_homes(const BatchItem& item) {
  Sequence& sequence = sequences_[item.slot];
  const int64_t full = (item.first_position + item.rows) / kPageTokens;
  for (; sequence.homed < full; ++sequence.homed) {
    if (homes_taken_ < homes_) {
      ++homes_taken_;
      ++sequence.at_home;
    } else {
      leaving_.push_back({item.slot, sequence.homed, disk_->add(item.slot)});
    }
  }
}

void KvStore::acquire(int layer, size_t visit) {
  if (!disk_) return;
  int64_t next = disk_->acquire(layer, visit);
  for (const BatchItem& item : visits_[visit]) {
    std::vector<std::byte*>& table = tables_[item.slot][layer];
    for (const int64_t page : sequences_[item.slot].on_disk) table[page] = disk_->memory(next++);
  }
}

void KvStore::release(int layer, size_t visit) {
  if (!disk_) return;
  disk_->release_visit();
  if (visit + 1 < visits_.size()) return;
  // No row of this layer is missing now.
  for (const Leaving& page : leaving_) {
    disk_->write(page.slot, page.index, layer, {tables_[page.slot][layer][page.page], stride_});
  }
}

void KvStore::settle() {
  if (leaving_.empty()) return;
  disk_->settle();
  for (const Leaving& page : leaving_) {
    Sequence& sequence = sequences_[page.slot];
    free_.push_back(sequence.memory[page.page]);
    sequence.memory[page.page] = -1;
    sequence.on_disk.push_back(page.page);
  }
  leaving_.clear();
}

}  // namespace headrace
