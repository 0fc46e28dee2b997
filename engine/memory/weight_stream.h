// The ring of buffers that streamed weights pass through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/io/io_queue.h"
#include "engine/memory/budget.h"
#include "engine/memory/offload_file.h"
#include "engine/memory/weight_placement.h"
#include "engine/thread_pool.h"
#include "engine/timeline.h"

namespace headrace {

// Reads the pieces of a sweep from the offload file, over and over in the same order, as far ahead
// as the ring has slots: across layers and, because the next step begins where this one began,
// across steps. One thread acquires and releases; the reads go on while it computes.
class WeightStream {
 public:
  // `ahead`: false reads a piece when it is asked for and not before (the serial schedule). `file`
  // and `threads` must outlive the stream. Throws DoesNotFit.
  WeightStream(const OffloadFile& file, std::vector<WeightPiece> pieces,
               const WeightPlacement& placement, std::unique_ptr<IoQueue> queue,
               MemoryBudget& budget, ThreadPool& threads, bool ahead);

  const std::vector<WeightPiece>& pieces() const { return pieces_; }

  // Waits until the piece is there; its bytes, from piece.from on, until it is released. Pieces
  // come in order, the first one after the last; those in between may be left out. Throws IoError.
  const std::byte* acquire(size_t piece);
  void release(size_t piece);

  // The file's bytes [from, to) of a unit's image in parts that fit in a slot, checked, each passed
  // to `take` with its place in the image. Before the first acquire.
  template <typename Take>
  void read_through(size_t unit, uint64_t from, uint64_t to, Take&& take);

  uint64_t bytes_read() const { return bytes_read_; }

 private:
  struct Slot {
    std::byte* memory = nullptr;
    std::vector<IoTicket> tickets;
    int64_t begin = 0;  // of Timeline::now()
    uint64_t bytes = 0;
  };
  void read_ahead();
  void start_read(Slot& slot, size_t unit, uint64_t from, uint64_t to);
  void finish(Slot& slot);
  void check(const Slot& slot, size_t unit, uint64_t from, uint64_t to);
  Slot& slot_of(uint64_t visit) { return slots_[visit % slots_.size()]; }

  const OffloadFile& file_;
  std::vector<WeightPiece> pieces_;
  ThreadPool& threads_;
  bool ahead_;
  Buffer ring_;  // [slots][slot_bytes]
  uint64_t slot_bytes_;
  std::vector<Slot> slots_;
  std::unique_ptr<IoQueue> queue_;  // goes before the memory it reads to
  // Visit v is of piece v modulo their number, in slot v modulo theirs.
  uint64_t next_visit_ = 0;    // not released yet
  uint64_t next_read_ = 0;     // not started yet
  std::vector<bool> checked_;  // per piece: its bytes were compared with the checksums
  uint64_t bytes_read_ = 0;
};

template <typename Take>
void WeightStream::read_through(size_t unit, uint64_t from, uint64_t to, Take&& take) {
  const uint64_t first = from / kReadBlock * kReadBlock;
  const auto part_end = [&](uint64_t at) { return at + slot_bytes_ < to ? at + slot_bytes_ : to; };
  const auto slot_at = [&](uint64_t at) -> Slot& { return slot_of((at - first) / slot_bytes_); };
  uint64_t started = first;
  for (uint64_t at = first; at < to; at = part_end(at)) {
    for (; started < to && started < at + slots_.size() * slot_bytes_;
         started = part_end(started)) {
      start_read(slot_at(started), unit, started, part_end(started));
    }
    finish(slot_at(at));
    check(slot_at(at), unit, at, part_end(at));
    take(at, slot_at(at).memory, part_end(at) - at);
  }
}

}  // namespace headrace
