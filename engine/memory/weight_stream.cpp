#include "engine/memory/weight_stream.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "engine/memory/offload_reader.h"

namespace headrace {

static_assert(kReadBlock == kChecksumBlock);

namespace {

constexpr uint64_t kUsefulPart = 4 * kReadBlock;

}  // namespace

WeightStream::WeightStream(const OffloadFile& file, std::vector<WeightPiece> pieces, uint64_t ring,
                           std::unique_ptr<IoQueue> queue, MemoryBudget& budget,
                           ThreadPool& threads, bool ahead)
    : file_(file),
      pieces_(std::move(pieces)),
      places_{0},
      threads_(threads),
      ahead_(ahead),
      ring_(budget.allocate_ring(ring, "weight ring")),
      queue_(std::move(queue)),
      // Small enough that room for one is there soon, large enough that the queue holds a ring
      // full.
      part_(std::max(std::min(kUsefulPart, whole_blocks(ring_.size() / 8)),
                     whole_blocks(ring_.size() / static_cast<uint64_t>(queue_->depth())))),
      checked_(pieces_.size(), false) {
  for (const WeightPiece& piece : pieces_) places_.push_back(places_.back() + piece.bytes);
  queue_->register_memory({ring_.data(), ring_.size()});
}

uint64_t WeightStream::place_of(uint64_t visit) const {
  return visit / pieces_.size() * places_.back() + places_[visit % pieces_.size()];
}

void WeightStream::acquire(size_t piece) {
  while (visit_ % pieces_.size() != piece) leave();  // left out in this step
  checked_bytes_ = 0;
  if (ahead_) read_ahead();
}

uint64_t WeightStream::await(uint64_t bytes) {
  const WeightPiece& piece = piece_of(visit_);
  const uint64_t begin = place_of(visit_);
  const bool is_checked = checked_[visit_ % pieces_.size()];
  finish_to(begin + (is_checked ? bytes : std::min(whole_blocks(bytes), piece.bytes)));
  while (!reads_.empty() && queue_->finished(reads_.front().ticket)) finish_first();
  uint64_t there = std::min(arrived_ - begin, piece.bytes);
  if (is_checked) return there;
  if (there < piece.bytes) there = there / kReadBlock * kReadBlock;
  if (there > checked_bytes_) {
    verify_blocks(file_, threads_, piece.unit, checked_bytes_,
                  {memory(checked_bytes_), there - checked_bytes_});
    checked_bytes_ = there;
  }
  return there;
}

void WeightStream::done(uint64_t bytes) {
  const uint64_t end = place_of(visit_) + bytes;
  freed_ = std::max(freed_, end / kIoAlignment * kIoAlignment);
  if (ahead_) read_ahead();
}

void WeightStream::release(size_t piece) {
  if (visit_ % pieces_.size() != piece) throw std::logic_error("WeightStream: not acquired");
  await(pieces_[piece].bytes);
  checked_[piece] = true;
  leave();
  if (ahead_) read_ahead();
}

void WeightStream::leave() {
  const uint64_t end = place_of(visit_ + 1);
  while (arrived_ < std::min(end, started_)) finish_first();
  freed_ = end;
  if (read_visit_ > visit_++) return;
  read_visit_ = visit_;
  started_ = arrived_ = end;
}

// Starts reads while there is room in the ring and in the queue.
void WeightStream::read_ahead() {
  const uint64_t size = ring_.size();
  while (ahead_ || started_ < wanted_) {
    const WeightPiece& piece = piece_of(read_visit_);
    const uint64_t begin = place_of(read_visit_), end = begin + piece.bytes;
    // Not over the ring's end, though the memory goes on there: the queue knows it once.
    uint64_t bytes = std::min({part_, end - started_, size - started_ % size});
    const uint64_t room = freed_ + size - started_;
    if (started_ < wanted_) bytes = std::min(bytes, room);
    if (bytes == 0 || bytes > room) return;
    if (reads_.size() == static_cast<size_t>(queue_->depth())) return;
    const IoTicket ticket = queue_->read(
        file_.file(), file_.offset(piece.unit) + (started_ - begin), {memory_of(started_), bytes});
    reads_.push_back({started_ + bytes, ticket, started_ == begin, Timeline::now()});
    started_ += bytes;
    if (started_ == end) ++read_visit_;
  }
}

void WeightStream::finish_to(uint64_t place) {
  if (arrived_ >= place) return;
  const Wait wait(Wait::kWeights);
  wanted_ = place;
  read_ahead();
  while (arrived_ < place) {
    if (reads_.empty()) throw std::logic_error("WeightStream: the ring is too small for its use");
    finish_first();
    read_ahead();
  }
}

void WeightStream::finish_first() {
  const Read read = reads_.front();
  queue_->wait(read.ticket);
  reads_.pop_front();
  if (read.begins_piece) piece_begin_ = read.begin;
  arrived_ = read.end;
  Timeline* timeline = Timeline::of_thread();
  const auto next =
      std::find(places_.begin() + 1, places_.end(), (arrived_ - 1) % places_.back() + 1);
  if (!timeline || next == places_.end()) return;
  timeline->moved(Track::kWeightsIn, "weights", piece_begin_, Timeline::now(), *next - *(next - 1));
}

}  // namespace headrace
