// Reads and writes that go on while the caller computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/io/file.h"

namespace headrace {

// Names one transfer of a queue; tickets grow in the order of submission, from 1 on.
using IoTicket = uint64_t;

// A queue of transfers, several of them under way at once; they may finish in any order. One thread
// uses a queue, and lives until everything is waited for. Memory and file must stay valid until the
// transfer is waited for or the queue is gone (its destructor waits for what is under way).
class IoQueue {
 public:
  virtual ~IoQueue() = default;

  // Starts a transfer of memory.size() bytes at `offset`; everything aligned to kIoAlignment (else
  // std::logic_error). If `depth` transfers are under way, waits for one first, so that a rank
  // never has more than that on a disk it may share. Transfers that touch the same bytes have no
  // order: wait for the first before starting the second.
  virtual IoTicket read(const File& file, uint64_t offset, std::span<std::byte> memory) = 0;
  virtual IoTicket write(const File& file, uint64_t offset, std::span<const std::byte> memory) = 0;

  // Returns when the transfer is done; at once if it was waited for before. Throws IoError with
  // file, offset and reason if it failed or the file ended early; the failure of a transfer stays
  // with its ticket: every wait for it throws, and no other.
  virtual void wait(IoTicket ticket) = 0;
  // True if wait() would not block.
  virtual bool finished(IoTicket ticket) = 0;

  // Memory and files that transfers will use again and again: lets the kernel keep them at hand.
  // Best effort; waits for what is under way. Both must outlive the queue.
  virtual void register_memory(std::span<std::byte> memory) = 0;
  virtual void register_file(const File& file) = 0;

  virtual int depth() const = 0;
  // "io_uring", or "8 threads (io_uring: Operation not permitted)".
  virtual std::string description() const = 0;
};

enum class IoMethod { kAuto, kUring, kThreads };

// kAuto: io_uring, or threads where the kernel or a container forbids it. kUring throws
// ResourceMissing there. depth is at least 1.
std::unique_ptr<IoQueue> make_io_queue(int depth, IoMethod method = IoMethod::kAuto);

// One transfer, done when these return; the same alignment and errors.
void read_now(const File& file, uint64_t offset, std::span<std::byte> memory);
void write_now(const File& file, uint64_t offset, std::span<const std::byte> memory);

}  // namespace headrace
