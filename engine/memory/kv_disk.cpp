#include "engine/memory/kv_disk.h"

#include <algorithm>
#include <stdexcept>

#include "engine/timeline.h"

namespace headrace {
namespace {

// Each sequence may hold one extent that it uses only in part.
int64_t extents_for(int64_t pages, int slots) {
  return (pages + KvDisk::kExtentPages - 1) / KvDisk::kExtentPages + slots;
}

}  // namespace

uint64_t KvDisk::file_bytes(int64_t pages, int slots, size_t stride, int layers) {
  return static_cast<uint64_t>(extents_for(pages, slots) * kExtentPages * layers) * stride;
}

KvDisk::KvDisk(const KvDiskOptions& options, size_t stride, int layers, int slots,
               MemoryBudget& budget)
    : stride_(stride),
      layers_(layers),
      extent_count_(extents_for(options.pages, slots)),
      staging_pages_(options.staging_pages),
      ahead_(options.ahead),
      file_(options.directory, File::Mode::kTemporary),
      ring_(budget.allocate(static_cast<size_t>(options.staging_pages) * stride, "KV staging")),
      queue_(options.make_queue()),
      sequences_(slots) {
  file_.allocate(file_bytes(options.pages, slots, stride, layers));
  for (int64_t extent = extent_count_; extent-- > 0;) free_extents_.push_back(extent);
  queue_->register_memory({ring_.data(), ring_.size()});
  queue_->register_file(file_);
}

int64_t KvDisk::add(int slot) {
  Sequence& sequence = sequences_[slot];
  if (sequence.pages % kExtentPages == 0) {
    if (free_extents_.empty()) throw std::logic_error("KvDisk: out of pages");
    sequence.extents.push_back(free_extents_.back());
    free_extents_.pop_back();
  }
  return sequence.pages++;
}

uint64_t KvDisk::offset(const Sequence& sequence, int64_t index, int layer) const {
  const int64_t extent = sequence.extents[index / kExtentPages];
  const int64_t page = (layer * extent_count_ + extent) * kExtentPages + index % kExtentPages;
  return static_cast<uint64_t>(page) * stride_;
}

void KvDisk::write(int slot, int64_t index, int layer, std::span<const std::byte> page) {
  if (writes_.empty()) {
    writes_begin_ = Timeline::now();
    writes_bytes_ = 0;
  }
  writes_.push_back(queue_->write(file_, offset(sequences_[slot], index, layer), page));
  writes_bytes_ += page.size();
  if (!ahead_) settle();
}

void KvDisk::settle() {
  if (writes_.empty()) return;
  {
    const Wait wait(Wait::kKv);
    for (const IoTicket ticket : writes_) queue_->wait(ticket);
  }
  writes_.clear();
  if (Timeline* timeline = Timeline::of_thread()) {
    timeline->moved(Track::kKvOut, "KV pages", writes_begin_, Timeline::now(), writes_bytes_);
  }
}

void KvDisk::release(int slot) {
  Sequence& sequence = sequences_[slot];
  free_extents_.insert(free_extents_.end(), sequence.extents.rbegin(), sequence.extents.rend());
  sequence = {};
}

void KvDisk::begin_sweep(const std::vector<std::vector<int>>& visits) {
  visits_.clear();
  for (const std::vector<int>& slots : visits) {
    Visit& visit = visits_.emplace_back();
    for (const int slot : slots) {
      const int64_t pages = sequences_[slot].pages;
      if (pages > 0) visit.parts.push_back({slot, pages});
      visit.pages += pages;
    }
    if (visit.pages > staging_pages_) {
      throw std::logic_error("KvDisk: a visit to more pages than the staging memory has");
    }
  }
  next_visit_ = read_visit_ = 0;
  read_part_ = 0;
  read_page_ = started_ = freed_ = 0;
  opened_.clear();
  if (ahead_) read_ahead();
}

void KvDisk::read_ahead() {
  const uint64_t end = ahead_ ? sweep_visits() : next_visit_ + 1;
  while (read_visit_ < end && read_on()) {
  }
}

// Starts a read or goes on to the next part or visit; false if the ring has no room.
bool KvDisk::read_on() {
  const Visit& visit = visit_of(read_visit_);
  if (opened_.size() == read_visit_ - next_visit_) opened_.push_back({{}, Timeline::now()});
  if (read_part_ == visit.parts.size()) {
    ++read_visit_;
    read_part_ = 0;
    return true;
  }
  const Part& part = visit.parts[read_part_];
  const auto layer = static_cast<int>(read_visit_ / visits_.size());
  const int64_t run = pages_in_a_row(part, layer);
  if (started_ + run > freed_ + staging_pages_) return false;
  const auto bytes = static_cast<size_t>(run) * stride_;
  opened_.back().tickets.push_back(queue_->read(
      file_, offset(sequences_[part.slot], read_page_, layer), {memory(started_), bytes}));
  started_ += run;
  read_page_ += run;
  if (read_page_ == part.pages) {
    ++read_part_;
    read_page_ = 0;
  }
  return true;
}

// From the page that is read next: as far as they lie together on disk and in the ring, and no more
// than lets reads begin again soon when a part of the ring is free.
int64_t KvDisk::pages_in_a_row(const Part& part, int layer) const {
  const Sequence& sequence = sequences_[part.slot];
  const int64_t most =
      std::min({part.pages - read_page_, staging_pages_ - started_ % staging_pages_,
                std::max(kExtentPages, staging_pages_ / 8)});
  const uint64_t from = offset(sequence, read_page_, layer);
  int64_t run = 1;
  while (run < most &&
         offset(sequence, read_page_ + run, layer) == from + static_cast<uint64_t>(run) * stride_) {
    ++run;
  }
  return run;
}

int64_t KvDisk::acquire(int layer, size_t visit) {
  if (next_visit_ != static_cast<uint64_t>(layer) * visits_.size() + visit) {
    throw std::logic_error("KvDisk: visits out of order");
  }
  // All before it are released, so the ring has room for the whole visit.
  read_ahead();
  Opened& opened = opened_.front();
  if (opened.tickets.empty()) return freed_;
  {
    const Wait wait(Wait::kKv);
    for (const IoTicket ticket : opened.tickets) queue_->wait(ticket);
  }
  opened.tickets.clear();
  if (Timeline* timeline = Timeline::of_thread()) {
    timeline->moved(Track::kKvIn, "KV pages", opened.begin, Timeline::now(),
                    static_cast<uint64_t>(visit_of(next_visit_).pages) * stride_,
                    {Arg::kLayer, layer});
  }
  return freed_;
}

void KvDisk::release_visit() {
  freed_ += visit_of(next_visit_).pages;
  opened_.pop_front();
  ++next_visit_;
  if (ahead_) read_ahead();
}

}  // namespace headrace
