#include "engine/memory/weight_stream.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace headrace {

static_assert(kReadBlock == kChecksumBlock);

WeightStream::WeightStream(const OffloadFile& file, std::vector<WeightPiece> pieces,
                           const WeightPlacement& placement, std::unique_ptr<IoQueue> queue,
                           MemoryBudget& budget, ThreadPool& threads, bool ahead)
    : file_(file),
      pieces_(std::move(pieces)),
      threads_(threads),
      ahead_(ahead),
      ring_(budget.allocate(placement.slots * placement.slot_bytes, "weight ring")),
      slot_bytes_(placement.slot_bytes),
      slots_(placement.slots),
      queue_(std::move(queue)),
      checked_(pieces_.size(), false) {
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].memory = ring_.data() + i * slot_bytes_;
  queue_->register_memory({ring_.data(), ring_.size()});
}

const std::byte* WeightStream::acquire(size_t piece) {
  while (next_visit_ % pieces_.size() != piece) {  // left out in this step
    if (next_visit_ < next_read_) finish(slot_of(next_visit_));
    ++next_visit_;
  }
  next_read_ = std::max(next_read_, next_visit_);
  read_ahead();
  Slot& slot = slot_of(next_visit_);
  finish(slot);
  if (!checked_[piece]) {
    check(slot, pieces_[piece].unit, pieces_[piece].from, pieces_[piece].to);
    checked_[piece] = true;
  }
  return slot.memory;
}

void WeightStream::release(size_t piece) {
  if (next_visit_ % pieces_.size() != piece) throw std::logic_error("WeightStream: not acquired");
  ++next_visit_;
  if (ahead_) read_ahead();
}

void WeightStream::read_ahead() {
  const uint64_t end = next_visit_ + (ahead_ ? slots_.size() : 1);
  for (; next_read_ < end; ++next_read_) {
    const WeightPiece& piece = pieces_[next_read_ % pieces_.size()];
    start_read(slot_of(next_read_), piece.unit, piece.from, piece.to);
  }
}

void WeightStream::start_read(Slot& slot, size_t unit, uint64_t from, uint64_t to) {
  // As many transfers as the queue takes without waiting, and not smaller than a megabyte.
  slot.begin = Timeline::now();
  slot.bytes = to - from;
  const uint64_t share = slots_.size() * slot_bytes_ / static_cast<uint64_t>(queue_->depth());
  const uint64_t part = std::max<uint64_t>(4 * kReadBlock, (share / kReadBlock + 1) * kReadBlock);
  for (uint64_t at = from; at < to; at += part) {
    const uint64_t bytes = std::min(part, to - at);
    slot.tickets.push_back(
        queue_->read(file_.file(), file_.offset(unit) + at, {slot.memory + (at - from), bytes}));
  }
  bytes_read_ += to - from;
}

void WeightStream::finish(Slot& slot) {
  if (slot.tickets.empty()) return;
  {
    const Wait wait(Wait::kWeights);
    for (const IoTicket ticket : slot.tickets) queue_->wait(ticket);
  }
  slot.tickets.clear();
  if (Timeline* timeline = Timeline::of_thread()) {
    timeline->moved(Track::kWeightsIn, "weights", slot.begin, Timeline::now(), slot.bytes);
  }
}

void WeightStream::check(const Slot& slot, size_t unit, uint64_t from, uint64_t to) {
  const auto blocks = static_cast<int64_t>((to - from + kReadBlock - 1) / kReadBlock);
  threads_.parallel_for(blocks, [&](int64_t i) {
    const uint64_t at = from + static_cast<uint64_t>(i) * kReadBlock;
    file_.verify(unit, at, {slot.memory + (at - from), std::min(kReadBlock, to - at)});
  });
}

}  // namespace headrace
