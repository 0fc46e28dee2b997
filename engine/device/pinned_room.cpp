#include "engine/device/pinned_room.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <utility>

namespace headrace {

void PinnedRoom::Free::operator()(std::byte* memory) const { std::free(memory); }

PinnedRoom::PinnedRoom(Device& device, size_t bytes) : size_(size_for(bytes)) {
  if (size_ == 0) return;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAligned, size_)));
  if (!memory_) throw std::bad_alloc();
  pin_ = device.pin({memory_.get(), size_});
}

std::span<std::byte> PinnedRoom::of(size_t bytes) const {
  if (bytes > size_) throw std::logic_error("PinnedRoom: a step is too large");
  return {memory_.get(), bytes};
}

std::span<std::byte> PinnedRing::take(size_t bytes) {
  const size_t size = aligned(bytes);
  begin_ = next_ + size <= room_.size() ? next_ : 0;
  const std::span<std::byte> memory = room_.of(begin_ + bytes).subspan(begin_);
  while (!pieces_.empty() && pieces_.front().copied->is_reached()) forget_first();
  const auto is_here = [&](const Piece& p) { return p.begin < begin_ + size && begin_ < p.end; };
  while (std::any_of(pieces_.begin(), pieces_.end(), is_here)) {
    pieces_.front().copied->synchronize();
    forget_first();
  }
  next_ = begin_ + size;
  return memory;
}

void PinnedRing::sent(DeviceStream& stream) {
  if (unused_.empty()) unused_.push_back(device_.make_event());
  device_.record(stream, *unused_.back());
  pieces_.push_back({begin_, next_, std::move(unused_.back())});
  unused_.pop_back();
}

void PinnedRing::forget_first() {
  unused_.push_back(std::move(pieces_.front().copied));
  pieces_.pop_front();
}

}  // namespace headrace
