#include "engine/memory/weight_stream.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace headrace {

static_assert(kReadBlock == kChecksumBlock);

namespace {

constexpr uint64_t kLeastPart = 4 * kReadBlock;

constexpr uint64_t round_up(uint64_t value) {
  return (value + kReadBlock - 1) / kReadBlock * kReadBlock;
}

}  // namespace

WeightStream::WeightStream(const OffloadFile& file, std::vector<WeightPiece> pieces,
                           const WeightPlacement& placement, std::unique_ptr<IoQueue> queue,
                           MemoryBudget& budget, ThreadPool& threads, bool ahead)
    : file_(file),
      pieces_(std::move(pieces)),
      places_{0},
      threads_(threads),
      ahead_(ahead),
      ring_(budget.allocate_ring(placement.piece_bytes + placement.ahead_bytes, "weight ring")),
      queue_(std::move(queue)),
      // Small enough that room for one is there soon, large enough that the queue holds a ring
      // full.
      part_(std::max(kLeastPart, round_up(ring_.size() / static_cast<uint64_t>(queue_->depth())))),
      checked_(pieces_.size(), false) {
  for (const WeightPiece& piece : pieces_)
    places_.push_back(places_.back() + piece.to - piece.from);
  queue_->register_memory({ring_.data(), ring_.size()});
}

uint64_t WeightStream::place_of(uint64_t visit) const {
  return visit / pieces_.size() * places_.back() + places_[visit % pieces_.size()];
}

const std::byte* WeightStream::acquire(size_t piece) {
  while (visit_ % pieces_.size() != piece) leave();  // left out in this step
  if (read_visit_ < visit_) {
    read_visit_ = visit_;
    started_ = arrived_ = place_of(visit_);
  }
  freed_ = place_of(visit_);
  checked_bytes_ = 0;
  read_ahead();
  if (!ahead_) finish_to(place_of(visit_ + 1));
  return memory(freed_);
}

void WeightStream::await(uint64_t bytes) {
  const WeightPiece& piece = piece_of(visit_);
  const bool is_checked = checked_[visit_ % pieces_.size()];
  if (!is_checked) bytes = std::min(round_up(bytes), piece.to - piece.from);
  const uint64_t begin = place_of(visit_);
  finish_to(begin + bytes);
  if (is_checked || bytes <= checked_bytes_) return;
  check(memory(begin) + checked_bytes_, piece.unit, piece.from + checked_bytes_,
        piece.from + bytes);
  checked_bytes_ = bytes;
}

void WeightStream::done(uint64_t bytes) {
  const uint64_t end = place_of(visit_) + bytes;
  freed_ = std::max(freed_, end / kIoAlignment * kIoAlignment);
  if (ahead_) read_ahead();
}

void WeightStream::release(size_t piece) {
  if (visit_ % pieces_.size() != piece) throw std::logic_error("WeightStream: not acquired");
  await(pieces_[piece].to - pieces_[piece].from);
  checked_[piece] = true;
  leave();
  if (ahead_) read_ahead();
}

void WeightStream::leave() {
  const uint64_t end = place_of(visit_ + 1);
  while (arrived_ < std::min(end, started_)) finish_first();
  freed_ = end;
  ++visit_;
}

// Starts reads while there is room in the ring and in the queue.
void WeightStream::read_ahead() {
  const uint64_t size = ring_.size();
  while (ahead_ || read_visit_ == visit_) {  // serial: this piece and no other
    const WeightPiece& piece = piece_of(read_visit_);
    const uint64_t begin = place_of(read_visit_), end = begin + (piece.to - piece.from);
    // Not over the ring's end, though the memory goes on there: the queue knows it once.
    const uint64_t bytes = std::min({part_, end - started_, size - started_ % size});
    if (started_ + bytes > freed_ + size) return;
    if (reads_.size() == static_cast<size_t>(queue_->depth())) return;
    const IoTicket ticket =
        queue_->read(file_.file(), file_.offset(piece.unit) + piece.from + (started_ - begin),
                     {memory(started_), bytes});
    reads_.push_back({started_ + bytes, ticket, started_ == begin, Timeline::now()});
    started_ += bytes;
    if (started_ == end) ++read_visit_;
  }
}

void WeightStream::finish_to(uint64_t place) {
  if (arrived_ >= place) return;
  const Wait wait(Wait::kWeights);
  while (arrived_ < place) {
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

void WeightStream::read_through(size_t unit, uint64_t from, uint64_t to, const Take& take) {
  const uint64_t first = from / kReadBlock * kReadBlock;
  const uint64_t part = std::min(kLeastPart, ring_.size() / kReadBlock * kReadBlock);
  const uint64_t parts = ring_.size() / part;
  const auto memory_of = [&](uint64_t at) {
    return ring_.data() + (at - first) / part % parts * part;
  };
  std::deque<IoTicket> tickets;
  uint64_t started = first;
  for (uint64_t at = first; at < to; at += part) {
    for (; started < to && started < at + parts * part; started += part) {
      tickets.push_back(queue_->read(file_.file(), file_.offset(unit) + started,
                                     {memory_of(started), std::min(part, to - started)}));
    }
    queue_->wait(tickets.front());
    tickets.pop_front();
    const std::span bytes(memory_of(at), std::min(part, to - at));
    check(bytes.data(), unit, at, at + bytes.size());
    take(at, bytes);
  }
}

void WeightStream::check(const std::byte* memory, size_t unit, uint64_t from, uint64_t to) {
  const auto blocks = static_cast<int64_t>((to - from + kReadBlock - 1) / kReadBlock);
  threads_.parallel_for(blocks, [&](int64_t i) {
    const uint64_t at = from + static_cast<uint64_t>(i) * kReadBlock;
    file_.verify(unit, at, {memory + (at - from), std::min(kReadBlock, to - at)});
  });
}

}  // namespace headrace
