#include "engine/memory/kv_disk.h"

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
      ring_(budget.allocate(
          static_cast<size_t>(options.staging_slots * options.staging_pages) * stride,
          "KV staging")),
      queue_(options.make_queue()),
      staging_(options.staging_slots),
      sequences_(slots) {
  file_.allocate(file_bytes(options.pages, slots, stride, layers));
  for (size_t i = 0; i < staging_.size(); ++i) {
    staging_[i].memory = ring_.data() + i * static_cast<size_t>(staging_pages_) * stride_;
  }
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

void KvDisk::begin_sweep(const std::vector<std::vector<int>>& micro_batches) {
  micro_batches_.clear();
  for (const std::vector<int>& slots : micro_batches) {
    std::vector<Part>& parts = micro_batches_.emplace_back();
    for (const int slot : slots) parts.push_back({slot, sequences_[slot].pages});
  }
  next_visit_ = next_read_ = 0;
  if (ahead_) read_ahead();
}

void KvDisk::read_ahead() {
  const uint64_t end = next_visit_ + (ahead_ ? staging_.size() : 1);
  for (; next_read_ < end && next_read_ < visits(); ++next_read_) start_visit(next_read_);
}

void KvDisk::start_visit(uint64_t visit) {
  Staging& staging = staging_[visit % staging_.size()];
  const auto layer = static_cast<int>(visit / micro_batches_.size());
  staging.begin = Timeline::now();
  staging.bytes = 0;
  std::byte* to = staging.memory;
  for (const Part& part : micro_batches_[visit % micro_batches_.size()]) {
    const Sequence& sequence = sequences_[part.slot];
    for (int64_t i = 0, run = 0; i < part.pages; i += run) {
      const uint64_t from = offset(sequence, i, layer);
      for (run = 1; i + run < part.pages; ++run) {
        if (offset(sequence, i + run, layer) != from + static_cast<uint64_t>(run) * stride_) break;
      }
      const size_t bytes = static_cast<size_t>(run) * stride_;
      if (to + bytes > staging.memory + static_cast<size_t>(staging_pages_) * stride_) {
        throw std::logic_error("KvDisk: a micro-batch has more pages than the staging memory");
      }
      staging.tickets.push_back(queue_->read(file_, from, {to, bytes}));
      staging.bytes += bytes;
      to += bytes;
    }
  }
}

std::byte* KvDisk::acquire(int layer, size_t micro_batch) {
  if (next_visit_ != layer * micro_batches_.size() + micro_batch) {
    throw std::logic_error("KvDisk: visits out of order");
  }
  read_ahead();
  Staging& staging = staging_[next_visit_ % staging_.size()];
  if (staging.tickets.empty()) return staging.memory;
  {
    const Wait wait(Wait::kKv);
    for (const IoTicket ticket : staging.tickets) queue_->wait(ticket);
  }
  staging.tickets.clear();
  if (Timeline* timeline = Timeline::of_thread()) {
    timeline->moved(Track::kKvIn, "KV pages", staging.begin, Timeline::now(), staging.bytes,
                    {Arg::kLayer, layer});
  }
  return staging.memory;
}

void KvDisk::release_visit() {
  ++next_visit_;
  if (ahead_) read_ahead();
}

}  // namespace headrace
