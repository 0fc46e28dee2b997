// The ring of memory that streamed weights pass through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
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
// across steps. A piece is used from its start to its end: it may be computed with while its end is
// still on the way, and its start makes room before its end is used. One thread acquires and
// releases; the reads go on while it computes.
class WeightStream {
 public:
  // `ahead`: false reads a piece when it is acquired and not before (the serial schedule). `file`
  // and `threads` must outlive the stream. Throws DoesNotFit.
  WeightStream(const OffloadFile& file, std::vector<WeightPiece> pieces,
               const WeightPlacement& placement, std::unique_ptr<IoQueue> queue,
               MemoryBudget& budget, ThreadPool& threads, bool ahead);

  const std::vector<WeightPiece>& pieces() const { return pieces_; }

  // Where the piece's bytes are, from piece.from on, until it is released; those that await() was
  // called for are there. Pieces come in order, the first one after the last; those in between may
  // be left out. Throws IoError.
  const std::byte* acquire(size_t piece);
  // Waits until the first `bytes` of the acquired piece are there. Throws IoError.
  void await(uint64_t bytes);
  // The first `bytes` of the acquired piece are not used again.
  void done(uint64_t bytes);
  void release(size_t piece);

  // The file's bytes [from, to) of a unit's image in parts, checked, each passed to `take` with its
  // place in the image. Before the first acquire. Throws IoError.
  using Take = std::function<void(uint64_t at, std::span<const std::byte> bytes)>;
  void read_through(size_t unit, uint64_t from, uint64_t to, const Take& take);

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
  std::byte* memory(uint64_t place) { return ring_.data() + place % ring_.size(); }
  void leave();
  void read_ahead();
  void finish_to(uint64_t place);
  void finish_first();
  void check(const std::byte* memory, size_t unit, uint64_t from, uint64_t to);

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
  std::deque<Read> reads_;      // under way, or done and not waited for, in order
  int64_t piece_begin_ = 0;     // of the piece that comes in
  std::vector<bool> checked_;   // per piece: its bytes were compared with the checksums
  uint64_t checked_bytes_ = 0;  // of the acquired piece
};

}  // namespace headrace
