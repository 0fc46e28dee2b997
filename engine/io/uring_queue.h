// IoQueue over io_uring. Source: io_uring(7), liburing.
#pragma once

#include <liburing.h>

#include "engine/io/io_queue.h"
#include "engine/io/transfer.h"

namespace headrace {

class UringQueue final : public IoQueue {
 public:
  // Throws ResourceMissing if the kernel or a container forbids io_uring.
  explicit UringQueue(int depth);
  ~UringQueue() override;
  UringQueue(const UringQueue&) = delete;
  UringQueue& operator=(const UringQueue&) = delete;

  IoTicket read(const File& file, uint64_t offset, std::span<std::byte> memory) override;
  IoTicket write(const File& file, uint64_t offset, std::span<const std::byte> memory) override;
  void wait(IoTicket ticket) override;
  bool finished(IoTicket ticket) override;
  void register_memory(std::span<std::byte> memory) override;
  int depth() const override { return depth_; }
  std::string description() const override { return "io_uring"; }

 private:
  IoTicket start(const io_detail::Transfer& transfer);
  // Submits what is left of a transfer.
  void submit(IoTicket ticket, const io_detail::Transfer& transfer);
  // Takes completions; waits for at least one if `block`.
  void collect(bool block);
  void complete(IoTicket ticket, int result);

  io_uring ring_;
  int depth_;
  int under_way_ = 0;
  io_detail::TransferLog log_;
  std::span<std::byte> registered_;
};

}  // namespace headrace
