#include "engine/device/kv_window.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>
#include <utility>

namespace headrace {
namespace {

constexpr size_t kPiece = 1 << 20;  // bytes of a copy that the link is fast with
constexpr int64_t kMostRun = 16;

}  // namespace

int64_t KvWindow::run_of(size_t stride) {
  return std::clamp<int64_t>(static_cast<int64_t>(kPiece / stride), 1, kMostRun);
}

int64_t KvWindow::homes_for(int64_t pages, int64_t sequences, size_t stride) {
  const int64_t run = run_of(stride);
  return pages == 0 ? 0 : ((pages + run - 1) / run + sequences) * run;
}

DiskHomes::Sizes KvWindow::disk_sizes(const Sizes& sizes) {
  if (sizes.disk_homes == 0) return {};
  return {sizes.stride, sizes.layers, sizes.disk_homes, sizes.room, sizes.filled};
}

uint64_t KvWindow::host_bytes(const Sizes& sizes) {
  const int64_t desks = sizes.disk_homes > 0 ? sizes.slots : 0;
  return static_cast<uint64_t>((sizes.homes + desks) * sizes.layers) * sizes.stride +
         DiskHomes::host_bytes(disk_sizes(sizes));
}

KvWindow::KvWindow(Device& device, DeviceStream& compute, std::byte* host, const Sizes& sizes,
                   const KvDiskAccess& disk)
    : device_(device),
      compute_(compute),
      sizes_(sizes),
      host_(host),
      desks_(home(sizes.layers, 0)),
      ring_(device.allocate(device_bytes(sizes))),
      copies_(device.make_stream(Track::kKvToGpu)),
      used_(device.make_event()),
      written_(device.make_event()),
      events_(device) {
  if (sizes.disk_homes == 0) return;
  disk_.emplace(device, disk, desk(sizes.layers, 0), disk_sizes(sizes));
}

KvWindow::~KvWindow() {
  try {
    copies_->synchronize();
    compute_.synchronize();
  } catch (const std::exception&) {
    // What failed was said to who waited for it, and nothing is left that runs.
  }
}

void KvWindow::begin_sweep(std::vector<std::vector<Page>> visits) {
  if (!opened_.empty())
    throw std::logic_error("KvWindow: a sweep begins before the last one ended");
  visits_.clear();
  std::unordered_map<int64_t, size_t> written_by;  // a visit, one past it
  for (std::vector<Page>& pages : visits) {
    Visit& visit = visits_.emplace_back();
    for (const Page& page : pages) {
      if (const auto found = written_by.find(page.home); found != written_by.end()) {
        visit.after = std::max(visit.after, found->second);
      }
    }
    for (const Page& page : pages) {
      if (page.is_written) written_by[page.home] = visits_.size();
    }
    visit.pages = std::move(pages);
    if (std::ssize(visit.pages) > sizes_.room) {
      throw std::logic_error("KvWindow: a visit to more pages than there is room for");
    }
  }
  next_ = 0;
  brought_ = freed_ = 0;
  device_.record(*copies_, *written_);
  if (disk_) disk_->begin_sweep(wanted_from_disk());
  bring_ahead();
}

std::vector<DiskHomes::Visit> KvWindow::wanted_from_disk() const {
  std::vector<DiskHomes::Visit> wanted;
  for (const Visit& visit : visits_) {
    std::vector<int64_t>& homes = wanted.emplace_back().homes;
    for (const Page& page : visit.pages) {
      if (comes_from_disk(page)) homes.push_back(page.home - sizes_.homes);
    }
    wanted.back().after = visit.after;
  }
  return wanted;
}

bool KvWindow::may_open(uint64_t number) {
  if (number >= visits_of_sweep()) return false;
  const Visit& visit = visit_of(number);
  const uint64_t layer_begin = number - number % visits_.size();
  return brought_ + std::ssize(visit.pages) <= freed_ + sizes_.room &&
         (visit.after == 0 || next_ >= layer_begin + visit.after) && (!disk_ || disk_->is_there());
}

void KvWindow::bring_ahead() {
  if (disk_) disk_->go_on();
  while (may_open(next_ + opened_.size())) bring(next_ + opened_.size());
}

// Waits for pages that come from disk.
void KvWindow::bring(uint64_t number) {
  if (disk_) disk_->acquire();
  for_pieces(sources(number), brought_, [&](std::byte* from, std::byte* to, size_t bytes) {
    device_.copy_in(*copies_, to, {from, bytes});
  });
  brought_ += std::ssize(visit_of(number).pages);
  opened_.push_back(events_.record(*copies_));
  if (disk_) disk_->release(*copies_);
}

std::vector<std::byte*> KvWindow::sources(uint64_t number) {
  const int layer = layer_of(number);
  std::vector<std::byte*> sources;
  int64_t from_disk = 0;
  for (const Page& page : visit_of(number).pages) {
    if (!page.has_tokens) {
      sources.push_back(nullptr);
    } else if (comes_from_disk(page)) {
      sources.push_back(disk_->page(from_disk++));
    } else {
      sources.push_back(is_on_disk(page) ? desk(layer, page.slot) : home(layer, page.home));
    }
  }
  return sources;
}

std::vector<std::byte*> KvWindow::targets(uint64_t number) {
  const int layer = layer_of(number);
  std::vector<std::byte*> targets;
  for (const Page& page : visit_of(number).pages) {
    if (!page.is_written) {
      targets.push_back(nullptr);
    } else if (is_on_disk(page) && page.is_filled) {
      targets.push_back(disk_->leave(layer, page.home - sizes_.homes));
    } else {
      targets.push_back(is_on_disk(page) ? desk(layer, page.slot) : home(layer, page.home));
    }
  }
  return targets;
}

void KvWindow::acquire(int layer, size_t visit) {
  const bool is_next = next_ == static_cast<uint64_t>(layer) * visits_.size() + visit;
  if (!is_next || next_ >= visits_of_sweep()) {
    throw std::logic_error("KvWindow: visits out of order");
  }
  if (opened_.empty()) bring(next_);
  device_.wait(compute_, *opened_.front());
  bring_ahead();
}

void KvWindow::release() {
  device_.record(compute_, *used_);
  device_.wait(*copies_, *used_);
  for_pieces(targets(next_), freed_, [&](std::byte* to, std::byte* from, size_t bytes) {
    device_.copy_out(*copies_, {to, bytes}, from);
  });
  if (disk_) disk_->end_visit(*copies_);
  freed_ += std::ssize(visit_of(next_).pages);
  events_.give_back(std::move(opened_.front()));
  opened_.pop_front();
  ++next_;
  bring_ahead();
}

template <typename Copy>
void KvWindow::for_pieces(std::span<std::byte* const> host, int64_t first, Copy copy) {
  for (int64_t begin = 0, end = 0; begin < std::ssize(host); begin = end) {
    end = begin + 1;
    if (!host[begin]) continue;
    while (end < std::ssize(host) && host[end] == host[end - 1] + sizes_.stride &&
           (first + end) % sizes_.room != 0) {
      ++end;
    }
    copy(host[begin], place(first + begin), static_cast<size_t>(end - begin) * sizes_.stride);
  }
}

}  // namespace headrace
