// The ring of memory that streamed weights pass through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
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
// as the ring has room: across layers and, because the next step begins where this one began,
// across steps. A piece is used from its start to its end and may be longer than the ring: it is
// computed with while its end is still on the way, and what is done makes room before its end is
// there. One thread acquires and releases; the reads go on while it computes.
class WeightStream {
 public:
  // `ring`: bytes, a multiple of 4 KiB. `ahead`: false reads what is waited for and not before (the
  // serial schedule). `file` and `threads` must outlive the stream. Throws DoesNotFit.
  WeightStream(const OffloadFile& file, std::vector<WeightPiece> pieces, uint64_t ring,
               std::unique_ptr<IoQueue> queue, MemoryBudget& budget, ThreadPool& threads,
               bool ahead);

  // Pieces come in order, the first one after the last; those in between may be left out. Throws
  // IoError.
  void acquire(size_t piece);
  // Waits until the first `bytes` (not 0) of the acquired piece are there; returns how many are,
  // at least those. From what done() freed there must be no more than the ring, less a block of
  // kReadBlock (else std::logic_error). Throws IoError.
  uint64_t await(uint64_t bytes);
  // Where byte `at` of the acquired piece is, with those after it that are there, until it is done.
  const std::byte* memory(uint64_t at) { return memory_of(place_of(visit_) + at); }
  // The first `bytes` of the acquired piece are not used again.
  void done(uint64_t bytes);
  // What pieces come into: the ring, and the ring once more, where what goes round its end goes on.
  std::span<std::byte> buffer() { return {ring_.data(), 2 * ring_.size()}; }
  // No more than the ring may be left that is not done.
  void release(size_t piece);

 private:
  // The pieces of all sweeps, one after the other, make a stream; places count its bytes from the
  // start. The byte at a place is in the ring at the place modulo the ring's size.
  struct Read {
    uint64_t end;  // place
    IoTicket ticket;
    bool begins_piece;
    int64_t begin;  // of Timeline::now()
  };
  uint64_t place_of(uint64_t visit) const;
  const WeightPiece& piece_of(uint64_t visit) const { return pieces_[visit % pieces_.size()]; }
  std::byte* memory_of(uint64_t place) { return ring_.data() + place % ring_.size(); }
  void leave();
  void read_ahead();
  void finish_to(uint64_t place);
  void finish_first();

  const OffloadFile& file_;
  std::vector<WeightPiece> pieces_;
  std::vector<uint64_t> places_;  // of each piece in the first sweep, and where the second begins
  ThreadPool& threads_;
  bool ahead_;
  Buffer ring_;
  std::unique_ptr<IoQueue> queue_;  // goes before the memory it reads to
  uint64_t part_;                   // bytes of a read

  // Visit v is of piece v modulo their number.
  uint64_t visit_ = 0;          // not released yet
  uint64_t read_visit_ = 0;     // whose reads are not all started yet
  uint64_t started_ = 0;        // places before it: reads are started or not wanted
  uint64_t arrived_ = 0;        // ... are there
  uint64_t freed_ = 0;          // ... are not used again
  uint64_t wanted_ = 0;         // ... are waited for
  std::deque<Read> reads_;      // under way, or done and not waited for, in order
  int64_t piece_begin_ = 0;     // of the piece that comes in
  std::vector<bool> checked_;   // per piece: its bytes were compared with the checksums
  uint64_t checked_bytes_ = 0;  // of the acquired piece
};

}  // namespace headrace
