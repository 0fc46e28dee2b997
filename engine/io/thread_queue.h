// IoQueue over threads that call pread and pwrite.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/io/io_queue.h"
#include "engine/io/transfer.h"

namespace headrace {

class ThreadQueue final : public IoQueue {
 public:
  // As many threads as `depth`, at most 16. `reason`: why not io_uring, for description().
  // Throws ResourceMissing if not one thread can be started.
  ThreadQueue(int depth, std::string reason);
  ~ThreadQueue() override;

  IoTicket read(const File& file, uint64_t offset, std::span<std::byte> memory) override;
  IoTicket write(const File& file, uint64_t offset, std::span<const std::byte> memory) override;
  void wait(IoTicket ticket) override;
  bool finished(IoTicket ticket) override;
  void register_memory(std::span<std::byte>) override {}
  void register_file(const File&) override {}
  int depth() const override { return depth_; }
  std::string description() const override;

 private:
  IoTicket start(const io_detail::Transfer& transfer);
  void work();

  int depth_;
  std::string reason_;
  std::mutex mutex_;
  std::condition_variable queued_, done_;
  io_detail::TransferLog log_;
  std::deque<IoTicket> waiting_;
  int under_way_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace headrace
