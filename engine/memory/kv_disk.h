// The pages of a stage's KV cache that are on disk.
//
// A page number of a sequence stands for one page in each layer. On disk, pages lie in extents of
// consecutive page numbers of one sequence, layer by layer, so that the pages a layer needs of a
// sequence are read in few pieces: byte ((layer * extents + extent) * kExtentPages + i) * stride.
// The file has no name: nothing of it is left however the process ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/io/file.h"
#include "engine/io/io_queue.h"
#include "engine/memory/budget.h"

namespace headrace {

struct KvDiskOptions {
  std::string directory;
  std::function<std::unique_ptr<IoQueue>()> make_queue;
  int64_t pages = 0;          // homes for so many page numbers
  int64_t staging_pages = 0;  // pages of one layer that a visit can bring in
  int staging_slots = 2;      // visits whose pages are in memory or on their way
  bool ahead = true;          // false: read when asked for, write and wait (the serial schedule)
};

// One thread uses it. `stride`, the bytes of a page, is a multiple of kIoAlignment.
class KvDisk {
 public:
  // Reserves the disk and takes the staging memory from `budget`. Throws IoError, DoesNotFit.
  KvDisk(const KvDiskOptions& options, size_t stride, int layers, int slots, MemoryBudget& budget);

  int64_t staging_pages() const { return staging_pages_; }
  // Pages of a sequence that are on disk; they are numbered in the order of add().
  int64_t count(int slot) const { return sequences_[slot].pages; }

  // A home for one more page of a sequence; returns its number. Throws std::logic_error if there is
  // none left.
  int64_t add(int slot);
  // Starts writing a layer of the page; `page` must not change before settle().
  void write(int slot, int64_t index, int layer, std::span<const std::byte> page);
  // All writes are done. Throws IoError.
  void settle();
  // After settle().
  void release(int slot);

  // A sweep visits layer 0 with each micro-batch in turn, then layer 1, and so on; a micro-batch is
  // a list of different slots whose counts add up to staging_pages at most.
  void begin_sweep(const std::vector<std::vector<int>>& micro_batches);
  // Waits until the pages of the next visit are there: those of its first sequence, then those of
  // the second ..., `stride` apart, until the visit is released. Throws IoError.
  std::byte* acquire(int layer, size_t micro_batch);
  void release_visit();

  static constexpr int64_t kExtentPages = 16;
  // Disk that `pages` homes take.
  static uint64_t file_bytes(int64_t pages, int slots, size_t stride, int layers);

 private:
  struct Sequence {
    int64_t pages = 0;
    std::vector<int64_t> extents;
  };
  struct Staging {
    std::byte* memory = nullptr;
    std::vector<IoTicket> tickets;
    int64_t begin = 0;  // of Timeline::now()
    uint64_t bytes = 0;
  };
  uint64_t offset(const Sequence& sequence, int64_t index, int layer) const;
  void read_ahead();
  void start_visit(uint64_t visit);
  uint64_t visits() const { return static_cast<uint64_t>(layers_) * micro_batches_.size(); }

  size_t stride_;
  int layers_;
  int64_t extent_count_;
  int64_t staging_pages_;
  bool ahead_;
  File file_;
  Buffer ring_;  // [staging_slots][staging_pages][stride]
  std::unique_ptr<IoQueue> queue_;
  std::vector<Staging> staging_;
  std::vector<int64_t> free_extents_;
  std::vector<Sequence> sequences_;  // by slot
  std::vector<IoTicket> writes_;
  int64_t writes_begin_ = 0;
  uint64_t writes_bytes_ = 0;
  struct Part {
    int slot;
    int64_t pages;  // when the sweep began; those added since are still in memory
  };
  std::vector<std::vector<Part>> micro_batches_;
  uint64_t next_visit_ = 0, next_read_ = 0;
};

}  // namespace headrace
