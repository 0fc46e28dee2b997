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

KvWindow::KvWindow(Device& device, DeviceStream& compute, std::byte* host, const Sizes& sizes)
    : device_(device),
      compute_(compute),
      host_(host),
      sizes_(sizes),
      ring_(device.allocate(device_bytes(sizes))),
      copies_(device.make_stream(Track::kKvToGpu)),
      used_(device.make_event()),
      written_(device.make_event()) {}

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
  bring_ahead();
}

bool KvWindow::may_open(uint64_t number) const {
  if (number >= visits_of_sweep()) return false;
  const Visit& visit = visit_of(number);
  const uint64_t layer_begin = number - number % visits_.size();
  return brought_ + std::ssize(visit.pages) <= freed_ + sizes_.room &&
         (visit.after == 0 || next_ >= layer_begin + visit.after);
}

void KvWindow::bring_ahead() {
  for (uint64_t number = next_ + opened_.size(); may_open(number); ++number) {
    for_pieces(
        number, brought_, [](const Page& page) { return page.has_tokens; },
        [&](std::byte* from, std::byte* to, size_t bytes) {
          device_.copy_in(*copies_, to, {from, bytes});
        });
    brought_ += std::ssize(visit_of(number).pages);
    opened_.push_back(take_event());
    device_.record(*copies_, *opened_.back());
  }
}

void KvWindow::acquire(int layer, size_t visit) {
  if (next_ != static_cast<uint64_t>(layer) * visits_.size() + visit || opened_.empty()) {
    throw std::logic_error("KvWindow: visits out of order");
  }
  device_.wait(compute_, *opened_.front());
}

void KvWindow::release() {
  device_.record(compute_, *used_);
  device_.wait(*copies_, *used_);
  for_pieces(
      next_, freed_, [](const Page& page) { return page.is_written; },
      [&](std::byte* to, std::byte* from, size_t bytes) {
        device_.copy_out(*copies_, {to, bytes}, from);
      });
  freed_ += std::ssize(visit_of(next_).pages);
  events_.push_back(std::move(opened_.front()));
  opened_.pop_front();
  ++next_;
  bring_ahead();
}

template <typename Wants, typename Copy>
void KvWindow::for_pieces(uint64_t visit, int64_t first, Wants wants, Copy copy) {
  const std::vector<Page>& pages = visit_of(visit).pages;
  const int layer = layer_of(visit);
  for (int64_t begin = 0, end = 0; begin < std::ssize(pages); begin = end) {
    end = begin + 1;
    if (!wants(pages[begin])) continue;
    while (end < std::ssize(pages) && wants(pages[end]) &&
           pages[end].home == pages[end - 1].home + 1 && (first + end) % sizes_.room != 0) {
      ++end;
    }
    copy(home(layer, pages[begin].home), place(first + begin),
         static_cast<size_t>(end - begin) * sizes_.stride);
  }
}

std::unique_ptr<DeviceEvent> KvWindow::take_event() {
  if (events_.empty()) return device_.make_event();
  auto event = std::move(events_.back());
  events_.pop_back();
  return event;
}

}  // namespace headrace
