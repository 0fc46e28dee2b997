// The pages of a stage's KV cache that are on disk.
//
// A page number of a sequence stands for one page in each layer. On disk, pages lie in extents of
// consecutive page numbers of one sequence, layer by layer, so that the pages a layer needs of a
// sequence are read in few pieces: byte ((layer * extents + extent) * kExtentPages + i) * stride.
// They come in through a ring of memory, in the order of use, as far ahead as it has room.
// The file has no name: nothing of it is left however the process ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/io/file.h"
#include "engine/io/io_queue.h"
#include "engine/memory/budget.h"

namespace headrace {

// How KV pages get to a disk.
struct KvDiskAccess {
  std::string directory;
  std::function<std::unique_ptr<IoQueue>()> make_queue;
  bool ahead = true;  // false: read when asked for, write and wait (the serial schedule)
};

struct KvDiskOptions : KvDiskAccess {
  int64_t pages = 0;  // homes for so many page numbers
  // Pages of a layer that are in memory or on their way; the most that a sequence may have.
  int64_t staging_pages = 0;
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

  // A sweep makes the given visits to layer 0 in turn, then to layer 1, and so on; a visit is to a
  // list of different slots whose counts add up to staging_pages at most.
  void begin_sweep(const std::vector<std::vector<int>>& visits);
  // Waits until the pages of the next visit are there: memory(place) is the first one of its first
  // sequence, then come the others of the sequence, then those of the next one, until the visit is
  // released. Returns that place. Throws IoError.
  int64_t acquire(int layer, size_t visit);
  std::byte* memory(int64_t place) { return ring_.data() + place % staging_pages_ * page_bytes(); }
  void release_visit();

  static constexpr int64_t kExtentPages = 16;
  // Disk that `pages` homes take.
  static uint64_t file_bytes(int64_t pages, int slots, size_t stride, int layers);

 private:
  struct Sequence {
    int64_t pages = 0;
    std::vector<int64_t> extents;
  };
  struct Part {
    int slot;
    int64_t pages;  // when the sweep began; those added since are still in memory
  };
  struct Visit {
    std::vector<Part> parts;
    int64_t pages = 0;
  };
  // A visit whose pages have begun to come.
  struct Opened {
    std::vector<IoTicket> tickets;
    int64_t begin = 0;  // of Timeline::now()
  };
  uint64_t offset(const Sequence& sequence, int64_t index, int layer) const;
  const Visit& visit_of(uint64_t number) const { return visits_[number % visits_.size()]; }
  void read_ahead();
  bool read_on();
  int64_t pages_in_a_row(const Part& part, int layer) const;
  int64_t page_bytes() const { return static_cast<int64_t>(stride_); }
  uint64_t sweep_visits() const { return static_cast<uint64_t>(layers_) * visits_.size(); }

  size_t stride_;
  int layers_;
  int64_t extent_count_;
  int64_t staging_pages_;
  bool ahead_;
  File file_;
  // [staging_pages][stride]; the pages of all visits of a sweep, one after the other, go round in
  // it.
  Buffer ring_;
  std::unique_ptr<IoQueue> queue_;
  std::vector<int64_t> free_extents_;
  std::vector<Sequence> sequences_;  // by slot
  std::vector<IoTicket> writes_;
  int64_t writes_begin_ = 0;
  uint64_t writes_bytes_ = 0;
  std::vector<Visit> visits_;  // of a layer
  uint64_t next_visit_ = 0;
  std::deque<Opened> opened_;  // from next_visit_ on
  // What is read next: a page of a part of a visit.
  uint64_t read_visit_ = 0;
  size_t read_part_ = 0;
  int64_t read_page_ = 0;
  int64_t started_ = 0, freed_ = 0;  // places, pages since the sweep began
};

}  // namespace headrace
