#include "engine/device/disk_homes.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "engine/timeline.h"

namespace headrace {
namespace {

constexpr size_t kPiece = 1 << 20;  // bytes of a transfer, or a page

void moved(Track track, int64_t begin, uint64_t bytes, Arg arg = {}) {
  if (Timeline* timeline = Timeline::of_thread()) {
    timeline->moved(track, "KV pages", begin, Timeline::now(), bytes, arg);
  }
}

}  // namespace

DiskHomes::DiskHomes(Device& device, const KvDiskAccess& disk, std::byte* host, const Sizes& sizes)
    : sizes_(sizes),
      ahead_(disk.ahead),
      file_(disk.directory, File::Mode::kTemporary),
      coming_memory_(host),
      leaving_memory_(host + static_cast<size_t>(sizes.coming) * sizes.stride),
      events_(device),
      queue_(disk.make_queue()) {
  file_.allocate(file_bytes(sizes));
  queue_->register_memory({host, host_bytes(sizes)});
  queue_->register_file(file_);
}

void DiskHomes::begin_sweep(std::vector<Visit> visits) {
  visits_ = std::move(visits);
  for (const Visit& visit : visits_) {
    if (std::ssize(visit.homes) > sizes_.coming) {
      throw std::logic_error("DiskHomes: a visit to more pages than there is room for");
    }
  }
  read_ = acquired_ = ended_ = 0;
  go_on();
}

void DiskHomes::go_on() {
  write_copied();
  const auto is_written = [&](const Leaving& leaving) {
    return !leaving.tickets.empty() &&
           std::ranges::all_of(leaving.tickets, [&](IoTicket t) { return queue_->finished(t); });
  };
  while (!leaving_.empty() && is_written(leaving_.front())) finish_leaving();
  while (!copied_.empty() && copied_.front().done->is_reached()) finish_copy();
  while (ahead_ && read_ < visits_of_sweep() && is_within_reach() && has_room()) read();
}

// Until the first visit that is not ended is brought, no place is used again from where pages
// leave.
bool DiskHomes::is_within_reach() const {
  const Visit& visit = visit_of(read_);
  const uint64_t layer_begin = read_ - read_ % visits_.size();
  if (visit.after > 0 && ended_ < layer_begin + visit.after) return false;
  return read_ == ended_ || unwritten_.empty() ||
         std::ranges::none_of(visit.homes, [&](int64_t home) {
           return unwritten_.contains(offset(layer_of(read_), home));
         });
}

bool DiskHomes::has_room() const {
  return started_ + std::ssize(visit_of(read_).homes) <= freed_ + sizes_.coming;
}

void DiskHomes::read() {
  std::vector<Piece> pieces;
  Coming& coming = coming_.emplace_back();
  coming.begin = Timeline::now();
  for (const int64_t home : visit_of(read_).homes) {
    const uint64_t at = offset(layer_of(read_), home);
    if (const auto leaving = unwritten_.find(at); leaving != unwritten_.end()) {
      coming.pages.push_back(leaving->second);
      continue;
    }
    coming.pages.push_back(coming_memory_ + position(started_++, sizes_.coming));
    add(pieces, at, coming.pages.back());
    ++coming.from_disk;
  }
  ++read_;
  for (const Piece& piece : pieces) {
    coming.tickets.push_back(queue_->read(file_, piece.offset, {piece.memory, piece.bytes}));
  }
}

void DiskHomes::add(std::vector<Piece>& pieces, uint64_t offset, std::byte* memory) const {
  if (!pieces.empty()) {
    Piece& last = pieces.back();
    if (last.offset + last.bytes == offset && last.memory + last.bytes == memory &&
        last.bytes + sizes_.stride <= kPiece) {
      last.bytes += sizes_.stride;
      return;
    }
  }
  pieces.push_back({offset, memory, sizes_.stride});
}

bool DiskHomes::is_there() {
  return acquired_ < read_ && std::ranges::all_of(coming_.front().tickets, [&](IoTicket ticket) {
           return queue_->finished(ticket);
         });
}

void DiskHomes::acquire() {
  while (acquired_ == read_) {
    if (has_room()) {
      read();
    } else {
      finish_copy();
    }
  }
  Coming& coming = coming_.front();
  if (coming.tickets.empty()) return;
  {
    const Wait wait(Wait::kKv);
    for (const IoTicket ticket : coming.tickets) queue_->wait(ticket);
  }
  coming.tickets.clear();
  moved(Track::kKvIn, coming.begin, static_cast<size_t>(coming.from_disk) * sizes_.stride,
        {Arg::kLayer, layer_of(acquired_)});
}

void DiskHomes::release(DeviceStream& copies) {
  if (const int64_t pages = coming_.front().from_disk; pages > 0) {
    copied_.push_back({pages, events_.record(copies)});
  }
  coming_.pop_front();
  ++acquired_;
}

void DiskHomes::finish_copy() {
  copied_.front().done->synchronize();
  freed_ += copied_.front().pages;
  events_.give_back(std::move(copied_.front().done));
  copied_.pop_front();
}

std::byte* DiskHomes::leave(int layer, int64_t home) {
  const uint64_t at = offset(layer, home);
  while (left_ == written_ + sizes_.leaving || unwritten_.contains(at)) finish_leaving();
  std::byte* const place = leaving_memory_ + position(left_++, sizes_.leaving);
  unwritten_[at] = place;
  add(filled_, at, place);
  return place;
}

void DiskHomes::end_visit(DeviceStream& copies) {
  ++ended_;
  if (filled_.empty()) return;
  Leaving& leaving = leaving_.emplace_back();
  leaving.pieces = std::exchange(filled_, {});
  leaving.copied = events_.record(copies);
  while (!ahead_ && !leaving_.empty()) finish_leaving();
}

void DiskHomes::write_copied() {
  for (Leaving& leaving : leaving_) {
    if (!leaving.tickets.empty()) continue;
    if (!leaving.copied->is_reached()) return;
    leaving.begin = Timeline::now();
    for (const Piece& piece : leaving.pieces) {
      leaving.tickets.push_back(queue_->write(file_, piece.offset, {piece.memory, piece.bytes}));
    }
  }
}

void DiskHomes::finish_leaving() {
  if (leaving_.empty())
    throw std::logic_error("DiskHomes: more pages leave than there is room for");
  Leaving& leaving = leaving_.front();
  leaving.copied->synchronize();
  write_copied();
  {
    const Wait wait(Wait::kKv);
    for (const IoTicket ticket : leaving.tickets) queue_->wait(ticket);
  }
  uint64_t bytes = 0;
  for (const Piece& piece : leaving.pieces) {
    for (size_t page = 0; page < piece.bytes; page += sizes_.stride) {
      unwritten_.erase(piece.offset + page);
    }
    bytes += piece.bytes;
  }
  written_ += static_cast<int64_t>(bytes / sizes_.stride);
  moved(Track::kKvOut, leaving.begin, bytes);
  events_.give_back(std::move(leaving.copied));
  leaving_.pop_front();
}

}  // namespace headrace
