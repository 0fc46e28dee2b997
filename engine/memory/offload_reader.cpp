#include "engine/memory/offload_reader.h"

#include <algorithm>
#include <deque>
#include <utility>

namespace headrace {
namespace {

constexpr uint64_t kMemory = 4 << 20;
constexpr uint64_t kPart = 4 * kChecksumBlock;

uint64_t memory_bytes(const MemoryBudget& budget) {
  const uint64_t blocks = budget.available() / kChecksumBlock;
  return std::clamp<uint64_t>(blocks, 1, kMemory / kChecksumBlock) * kChecksumBlock;
}

}  // namespace

void verify_blocks(const OffloadFile& file, ThreadPool& threads, size_t unit, uint64_t from,
                   std::span<const std::byte> data) {
  const auto blocks = static_cast<int64_t>((data.size() + kChecksumBlock - 1) / kChecksumBlock);
  threads.parallel_for(blocks, [&](int64_t i) {
    const uint64_t skip = static_cast<uint64_t>(i) * kChecksumBlock;
    const auto count = std::min<uint64_t>(kChecksumBlock, data.size() - skip);
    file.verify(unit, from + skip, data.subspan(skip, count));
  });
}

OffloadReader::OffloadReader(const OffloadFile& file, std::unique_ptr<IoQueue> queue,
                             MemoryBudget& budget, ThreadPool& threads)
    : file_(file),
      threads_(threads),
      memory_(budget.allocate(memory_bytes(budget), "loading")),
      queue_(std::move(queue)) {
  queue_->register_memory({memory_.data(), memory_.size()});
}

void OffloadReader::read(size_t unit, uint64_t from, uint64_t to, const Take& take) {
  const uint64_t first = from / kChecksumBlock * kChecksumBlock;
  const uint64_t part = std::min<uint64_t>(kPart, memory_.size());
  const uint64_t parts = memory_.size() / part;
  const auto memory_of = [&](uint64_t at) {
    return std::span(memory_.data() + (at - first) / part % parts * part, std::min(part, to - at));
  };
  std::deque<IoTicket> tickets;
  uint64_t started = first;
  for (uint64_t at = first; at < to; at += part) {
    for (; started < to && started < at + parts * part; started += part) {
      tickets.push_back(
          queue_->read(file_.file(), file_.offset(unit) + started, memory_of(started)));
    }
    queue_->wait(tickets.front());
    tickets.pop_front();
    verify_blocks(file_, threads_, unit, at, memory_of(at));
    take(at, memory_of(at));
  }
}

}  // namespace headrace
