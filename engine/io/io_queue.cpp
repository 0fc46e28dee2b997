#include "engine/io/io_queue.h"

#include <algorithm>

#include "engine/error.h"
#include "engine/io/thread_queue.h"
#include "engine/io/transfer.h"
#include "engine/io/uring_queue.h"

namespace headrace {
namespace {

void transfer_now(io_detail::Transfer transfer) {
  check_request(transfer);
  move_all(transfer);
  if (!transfer.failure.empty()) throw IoError(transfer.failure);
}

}  // namespace

std::unique_ptr<IoQueue> make_io_queue(int depth, IoMethod method) {
  depth = std::max(depth, 1);
  if (method == IoMethod::kThreads) return std::make_unique<ThreadQueue>(depth, "");
  try {
    return std::make_unique<UringQueue>(depth);
  } catch (const ResourceMissing& missing) {
    if (method == IoMethod::kUring) throw;
    return std::make_unique<ThreadQueue>(depth, missing.what());
  }
}

void read_now(const File& file, uint64_t offset, std::span<std::byte> memory) {
  transfer_now({&file, offset, memory.data(), memory.size(), false});
}

void write_now(const File& file, uint64_t offset, std::span<const std::byte> memory) {
  transfer_now({&file, offset, const_cast<std::byte*>(memory.data()), memory.size(), true});
}

}  // namespace headrace
