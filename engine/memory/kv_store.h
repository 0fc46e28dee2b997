// The KV cache of one stage: pages of kPageTokens tokens, in memory or on disk.
//
// A page number stands for one page in each of the stage's layers. A page that is being filled, and
// every page that the step under way writes, is in memory. When a page is full it gets its home,
// for good: memory as long as there is room, else disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/memory/budget.h"
#include "engine/memory/kv_disk.h"
#include "engine/memory/kv_passage.h"
#include "engine/ops/attention.h"

namespace headrace {

// A step's rows of one sequence: consecutive positions, consecutive rows of the hidden states.
struct BatchItem {
  int slot = 0;
  int64_t first_position = 0;
  int64_t rows = 0;
};

// Sequences of a step whose pages of a layer are in memory at once, each at most once.
using KvVisit = std::span<const BatchItem>;

// Memory of so many pages, KvStore::bytes_per_page() for each.
struct KvArena {
  std::byte* memory = nullptr;
  int64_t pages = 0;
};

// One thread uses it.
class KvStore {
 public:
  // Room for `pages` pages per layer, all in memory, and `slots` sequences. Memory comes from
  // `budget`, which must outlive the store. Throws DoesNotFit.
  KvStore(const KvPageShape& shape, int layers, int64_t pages, int slots, MemoryBudget& budget);
  // The same in the caller's memory, which may be a device's: the store makes addresses in it and
  // never reads or writes it. All layers have the same tables. Pages for which the arena has no
  // room have their homes with `passage`, if there is one, and tables are then each layer's own.
  KvStore(const KvPageShape& shape, int layers, int slots, const KvArena& arena,
          KvPassage* passage = nullptr);
  // The same with `memory_pages` homes in memory and disk.pages on disk. `step_rows`: most rows of
  // a step. Throws DoesNotFit, IoError.
  KvStore(const KvPageShape& shape, int layers, int64_t memory_pages, int slots, int64_t step_rows,
          const KvDiskOptions& disk, MemoryBudget& budget);

  static uint64_t bytes_per_page(const KvPageShape& shape, int layers) {
    return shape.page_bytes() * layers;
  }
  static int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }
  // Pages in memory, besides homes, that a store with a disk needs for what steps write.
  static int64_t pages_in_use(int slots, int64_t step_rows);

  // Makes sure that `slot` has pages for its first `tokens` tokens. Throws std::logic_error if none
  // is left: the coordinator admits only what fits. IoError if an earlier page could not be
  // written.
  void reserve(int slot, int64_t tokens);
  // Where is_fixed(): the first pages of `slot`, up to `pages` in all, are those of `from`, which
  // has as many. Both give them back, and no row may be written there any more. Throws
  // std::logic_error.
  void share(int slot, int from, int64_t pages);
  // Gives all pages of the slot back; those that others share are theirs.
  void release(int slot);

  // Pages per layer of this sequence that only come for visits, and how many of them a visit to
  // several sequences should have, so that those of the next one come meanwhile.
  int64_t visiting_pages(int slot) const;
  int64_t visit_pages() const;
  // Those that have their homes in host memory, beside a device.
  int64_t pages_at_home(int slot) const;
  // All pages of this sequence have their homes in host memory, none on a device or disk.
  bool is_at_home(int slot) const;
  // All pages are where they are for good.
  bool is_fixed() const { return !disk_ && !passage_; }

  // A sweep over sequences whose pages are reserved: for each layer (counted within the stage) each
  // visit in turn is acquired, used and released; together they have all rows of the step. What the
  // visits refer to is kept until then. Throws IoError.
  void begin_sweep(std::vector<KvVisit> visits);
  void acquire(int layer, size_t visit);
  void release(int layer, size_t visit);
  // The host computes with the pages of these sequences at home, which no visit of the sweep has.
  // Waits for what earlier sweeps have written.
  void acquire_at_home(int layer, std::span<const BatchItem> items);

  // Page addresses of a slot in a layer, for pages of shape(layer), in token order. Valid until the
  // slot's next reserve or release where is_fixed(), else until the visit is released.
  std::byte* const* pages(int slot, int layer) const {
    return tables_[slot][kind_ == Tables::kOfALayer ? layer : 0].data();
  }
  KvPageShape shape(int layer) const;
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }

 private:
  struct Sequence {
    std::vector<int64_t> memory;   // page numbers in the arena; -1: elsewhere
    std::vector<int64_t> on_disk;  // which of the sequence's pages, in the order of KvDisk::add
    int64_t homed = 0;             // pages that have their home
    int64_t at_home = 0;           // of them, in memory
    std::vector<int64_t> passing;  // which of the sequence's pages, in the order of their homes
    std::vector<int64_t> runs;     // first of the passage's homes that are the sequence's
  };
  struct Leaving {
    int slot;
    int64_t page, index;  // of the sequence; of KvDisk
  };
  // A sequence's table is of all layers, which are the same distance apart for every page; of the
  // layer that is visited; or each layer has its own.
  enum class Tables { kOfAllLayers, kOfAVisit, kOfALayer };

  KvStore(const KvPageShape& shape, int layers, size_t stride, int64_t pages, int64_t homes,
          int slots, Tables kind);
  std::byte* address(int layer, int64_t number) const;
  void find_homes(const BatchItem& item);
  void settle();
  void take(int slot, int64_t number);
  void give_back(int64_t number);
  int64_t home(const Sequence& sequence, int64_t index) const {
    return sequence.runs[index / passage_->run()] + index % passage_->run();
  }
  bool is_on_disk(int64_t home) const { return home >= passage_->homes(); }
  bool belongs_at_home(const Sequence& sequence) const;
  void add_passing(Sequence& sequence);
  void begin_passing();
  // Calls use(index in `passing`, page) for those that have tokens when the item's rows have been
  // added.
  template <typename Use>
  void for_passing(const BatchItem& item, Use use) const;

  KvPageShape shape_;
  int layers_;
  size_t stride_;
  int64_t page_count_;
  Tables kind_;
  size_t page_stride_, layer_stride_;  // from page to page, and from layer to layer
  int64_t homes_;                      // in memory
  int64_t homes_taken_ = 0;
  Buffer memory_;  // of the arena, where it is the store's
  std::byte* arena_ = nullptr;
  std::optional<KvDisk> disk_;
  KvPassage* passage_ = nullptr;
  std::vector<int64_t> free_runs_, free_disk_runs_;           // first homes
  std::vector<int64_t> free_;                                 // page numbers
  std::vector<int32_t> users_;                                // slots, by page number
  std::vector<Sequence> sequences_;                           // by slot
  std::vector<std::vector<std::vector<std::byte*>>> tables_;  // [slot][1 or layer]
  std::vector<KvVisit> visits_;
  std::vector<Leaving> leaving_;  // pages that this step fills and that go to disk
};

}  // namespace headrace
