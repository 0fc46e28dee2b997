#include "engine/memory/kv_store.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace headrace {
namespace {

// In a passage: one that is computed with, the others come in.
constexpr int64_t kVisitsThere = 3;

}  // namespace

KvStore::KvStore(const KvPageShape& shape, int layers, size_t stride, int64_t pages, int64_t homes,
                 int slots, Tables kind)
    : shape_(shape),
      layers_(layers),
      stride_(stride),
      page_count_(pages),
      kind_(kind),
      page_stride_(stride),
      layer_stride_(static_cast<size_t>(pages) * stride),
      homes_(homes),
      users_(static_cast<size_t>(pages)),
      sequences_(slots),
      tables_(slots, std::vector<std::vector<std::byte*>>(kind == Tables::kOfALayer ? layers : 1)) {
  for (int64_t page = pages; page-- > 0;) free_.push_back(page);
}

KvStore::KvStore(const KvPageShape& shape, int layers, int64_t pages, int slots,
                 MemoryBudget& budget)
    : KvStore(shape, layers, shape.page_bytes(), pages, pages, slots, Tables::kOfAllLayers) {
  memory_ = budget.allocate(bytes_per_page(shape, layers) * pages, "KV cache");
  arena_ = memory_.data();
}

KvStore::KvStore(const KvPageShape& shape, int layers, int slots, const KvArena& arena,
                 KvPassage* passage)
    : KvStore(shape, layers, shape.page_bytes(), arena.pages, arena.pages, slots,
              passage ? Tables::kOfALayer : Tables::kOfAllLayers) {
  arena_ = arena.memory;
  passage_ = passage;
  if (!passage) {
    layer_stride_ = stride_;
    page_stride_ = stride_ * static_cast<size_t>(layers);
    return;
  }
  const auto runs_of = [&](int64_t first, int64_t homes, std::vector<int64_t>& runs) {
    for (int64_t run = homes / passage->run(); run-- > 0;) {
      runs.push_back(first + run * passage->run());
    }
  };
  runs_of(0, passage->homes(), free_runs_);
  runs_of(passage->homes(), passage->disk_homes(), free_disk_runs_);
}

KvStore::KvStore(const KvPageShape& shape, int layers, int64_t memory_pages, int slots,
                 int64_t step_rows, const KvDiskOptions& disk, MemoryBudget& budget)
    : KvStore(shape, layers, io_aligned(shape.page_bytes()),
              memory_pages + pages_in_use(slots, step_rows), memory_pages, slots,
              Tables::kOfAVisit) {
  memory_ = budget.allocate(static_cast<size_t>(page_count_ * layers) * stride_, "KV cache");
  arena_ = memory_.data();
  disk_.emplace(disk, stride_, layers, slots, budget);
}

std::byte* KvStore::address(int layer, int64_t number) const {
  return arena_ + static_cast<size_t>(number) * page_stride_ +
         static_cast<size_t>(layer) * layer_stride_;
}

KvPageShape KvStore::shape(int layer) const {
  KvPageShape shape = shape_;
  if (kind_ == Tables::kOfAllLayers) shape.page_offset = static_cast<size_t>(layer) * layer_stride_;
  return shape;
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
    if (passage_ && (free_.empty() || belongs_at_home(sequence))) {
      add_passing(sequence);
      for (auto& table : tables_[slot]) table.push_back(nullptr);
      continue;
    }
    if (free_.empty()) throw std::logic_error("KvStore: out of pages");
    const int64_t page = free_.back();
    free_.pop_back();
    take(slot, page);
  }
}

void KvStore::take(int slot, int64_t number) {
  ++users_[number];
  sequences_[slot].memory.push_back(number);
  for (int layer = 0; auto& table : tables_[slot]) table.push_back(address(layer++, number));
}

void KvStore::give_back(int64_t number) {
  if (--users_[number] == 0) free_.push_back(number);
}

void KvStore::share(int slot, int from, int64_t pages) {
  const std::vector<int64_t>&own = sequences_.at(slot).memory, &others = sequences_.at(from).memory;
  if (!is_fixed() || slot == from || pages > std::ssize(others)) {
    throw std::logic_error("KvStore: pages that cannot be shared");
  }
  for (int64_t page = std::ssize(own); page < pages; ++page) take(slot, others[page]);
}

// Where the host computes with whole sequences: one that has begun at home stays there, and of
// those that begin so many do so in the arena as will have room in it.
bool KvStore::belongs_at_home(const Sequence& sequence) const {
  const bool has_room = std::ssize(sequence.passing) < std::ssize(sequence.runs) * passage_->run();
  const bool has_none = has_room ? is_on_disk(sequence.runs.back()) : free_runs_.empty();
  if (passage_->whole() == 0 || has_none) return false;
  if (!sequence.memory.empty()) return !sequence.passing.empty();
  const auto in_arena = std::count_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) {
    return !s.memory.empty() && s.memory.front() >= 0;
  });
  return (in_arena + 1) * passage_->whole() > page_count_;
}

void KvStore::add_passing(Sequence& sequence) {
  if (std::ssize(sequence.passing) == std::ssize(sequence.runs) * passage_->run()) {
    std::vector<int64_t>& runs = free_runs_.empty() ? free_disk_runs_ : free_runs_;
    if (runs.empty()) throw std::logic_error("KvStore: out of pages");
    sequence.runs.push_back(runs.back());
    runs.pop_back();
  }
  sequence.passing.push_back(std::ssize(sequence.memory));
  sequence.memory.push_back(-1);
}

void KvStore::release(int slot) {
  settle();
  Sequence& sequence = sequences_[slot];
  for (const int64_t number : sequence.memory) {
    if (number >= 0) give_back(number);
  }
  homes_taken_ -= sequence.at_home;
  if (disk_) disk_->release(slot);
  for (; !sequence.runs.empty(); sequence.runs.pop_back()) {
    const int64_t run = sequence.runs.back();
    (is_on_disk(run) ? free_disk_runs_ : free_runs_).push_back(run);
  }
  sequence = {};
  for (auto& table : tables_[slot]) table = {};  // not to keep the longest that there was
}

int64_t KvStore::visiting_pages(int slot) const {
  return disk_ ? disk_->count(slot) : std::ssize(sequences_[slot].passing);
}

int64_t KvStore::pages_at_home(int slot) const {
  int64_t pages = 0, left = std::ssize(sequences_[slot].passing);
  for (const int64_t run : sequences_[slot].runs) {
    if (!is_on_disk(run)) pages += std::min(left, passage_->run());
    left -= passage_->run();
  }
  return pages;
}

bool KvStore::is_at_home(int slot) const {
  return passage_ && pages_at_home(slot) == std::ssize(sequences_[slot].memory);
}

int64_t KvStore::visit_pages() const {
  if (passage_) return std::max<int64_t>(1, passage_->room() / kVisitsThere);
  return disk_ ? disk_->staging_pages() / 2 : 0;
}

template <typename Use>
void KvStore::for_passing(const BatchItem& item, Use use) const {
  const std::vector<int64_t>& passing = sequences_[item.slot].passing;
  for (int64_t i = 0; i < std::ssize(passing); ++i) {
    if (passing[i] * kPageTokens >= item.first_position + item.rows) return;
    use(i, passing[i]);
  }
}

void KvStore::begin_sweep(std::vector<KvVisit> visits) {
  if (is_fixed()) return;
  settle();
  visits_ = std::move(visits);
  if (passage_) return begin_passing();
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

void KvStore::begin_passing() {
  std::vector<std::vector<KvPassage::Page>> visits;
  for (const KvVisit& visit : visits_) {
    std::vector<KvPassage::Page>& pages = visits.emplace_back();
    for (const BatchItem& item : visit) {
      for_passing(item, [&](int64_t index, int64_t page) {
        const int64_t first = page * kPageTokens, end = first + kPageTokens;
        const bool has_tokens = first < item.first_position, is_full = end <= item.first_position;
        pages.push_back({home(sequences_[item.slot], index), has_tokens, !is_full,
                         end <= item.first_position + item.rows, item.slot});
      });
    }
  }
  passage_->begin_sweep(std::move(visits));
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
  if (is_fixed()) return;
  if (passage_) {
    passage_->acquire(layer, visit);
    int64_t place = 0;
    for (const BatchItem& item : visits_[visit]) {
      std::vector<std::byte*>& table = tables_[item.slot][layer];
      for_passing(item, [&](int64_t, int64_t page) { table[page] = passage_->page(place++); });
    }
    return;
  }
  int64_t next = disk_->acquire(layer, visit);
  for (const BatchItem& item : visits_[visit]) {
    const Sequence& sequence = sequences_[item.slot];
    std::vector<std::byte*>& table = tables_[item.slot].front();
    for (size_t page = 0; page < table.size(); ++page) {
      if (sequence.memory[page] >= 0) table[page] = address(layer, sequence.memory[page]);
    }
    for (const int64_t page : sequence.on_disk) table[page] = disk_->memory(next++);
  }
}

void KvStore::release(int layer, size_t visit) {
  if (passage_) passage_->release();
  if (!disk_) return;
  disk_->release_visit();
  if (visit + 1 < visits_.size()) return;
  // No row of this layer is missing now.
  for (const Leaving& page : leaving_) {
    const int64_t number = sequences_[page.slot].memory[page.page];
    disk_->write(page.slot, page.index, layer, {address(layer, number), stride_});
  }
}

void KvStore::acquire_at_home(int layer, std::span<const BatchItem> items) {
  passage_->await_homes();
  for (const BatchItem& item : items) {
    const Sequence& sequence = sequences_[item.slot];
    std::vector<std::byte*>& table = tables_[item.slot][layer];
    for_passing(item, [&](int64_t index, int64_t page) {
      table[page] = passage_->at_home(layer, home(sequence, index));
    });
  }
}

void KvStore::settle() {
  if (leaving_.empty()) return;
  disk_->settle();
  for (const Leaving& page : leaving_) {
    Sequence& sequence = sequences_[page.slot];
    give_back(sequence.memory[page.page]);
    sequence.memory[page.page] = -1;
    sequence.on_disk.push_back(page.page);
  }
  leaving_.clear();
}

}  // namespace headrace
