// Reads and writes that go on while the caller computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/io/file.h"

namespace headrace {

// Names one transfer of a queue; tickets grow in the order of submission.
using IoTicket = uint64_t;

// A queue of transfers, several of them under way at once; they may finish in any order. One thread
// uses a queue. Memory and file must stay valid until the transfer is waited for or the queue is
// gone (its destructor waits for what is under way).
class IoQueue {
 public:
  virtual ~IoQueue() = default;

  // Starts a transfer of memory.size() bytes at `offset`; everything aligned to kIoAlignment. If
  // `depth` transfers are under way, waits for one first.
  virtual IoTicket read(const File& file, uint64_t offset, std::span<std::byte> memory) = 0;
  virtual IoTicket write(const File& file, uint64_t offset, std::span<const std::byte> memory) = 0;

  // Returns when the transfer is done; at once if it was waited for before. Throws IoError with
  // file, offset and reason if it failed or the file ended early; the failure of a transfer stays
  // with its ticket.
  virtual void wait(IoTicket ticket) = 0;
  // True if wait() would not block.
  virtual bool finished(IoTicket ticket) = 0;

  // Memory that transfers will use again and again: lets the kernel keep it mapped. Best effort.
  virtual void register_memory(std::span<std::byte> memory) = 0;

  virtual int depth() const = 0;
  // "io_uring", or "8 threads (io_uring: Operation not permitted)".
  virtual std::string description() const = 0;
};

enum class IoMethod { kAuto, kUring, kThreads };

// kAuto: io_uring, or threads where the kernel or a container forbids it. kUring throws
// ResourceMissing there.
std::unique_ptr<IoQueue> make_io_queue(int depth, IoMethod method = IoMethod::kAuto);

}  // namespace headrace
