// IoQueue over io_uring. Source: io_uring(7), liburing.
#pragma once

#include <liburing.h>

#include <vector>

#include "engine/io/io_queue.h"
#include "engine/io/transfer.h"

namespace headrace {

class UringQueue final : public IoQueue {
 public:
  // Throws ResourceMissing if the kernel is too old, or it or a container forbids io_uring.
  explicit UringQueue(int depth);
  ~UringQueue() override;
  UringQueue(const UringQueue&) = delete;
  UringQueue& operator=(const UringQueue&) = delete;

  IoTicket read(const File& file, uint64_t offset, std::span<std::byte> memory) override;
  IoTicket write(const File& file, uint64_t offset, std::span<const std::byte> memory) override;
  void wait(IoTicket ticket) override;
  bool finished(IoTicket ticket) override;
  void register_memory(std::span<std::byte> memory) override;
  void register_file(const File& file) override;
  int depth() const override { return depth_; }
  std::string description() const override { return "io_uring"; }

 private:
  // Owner of the ring itself.
  struct Ring {
    explicit Ring(unsigned depth);
    ~Ring();
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    void try_out();
    io_uring ring;
  };

  IoTicket start(const io_detail::Transfer& transfer);
  // Submits the next piece of a transfer.
  void submit(IoTicket ticket, const io_detail::Transfer& transfer);
  // Takes completions; waits for at least one if `block`.
  void collect(bool block);
  void complete(IoTicket ticket, int result);
  // Positions among what is registered, or -1.
  int registered_memory(const std::byte* memory, size_t bytes) const;
  int registered_file(const File& file) const;

  Ring ring_;
  int depth_;
  int under_way_ = 0;
  io_detail::TransferLog log_;
  std::vector<iovec> memory_;
  std::vector<const File*> files_;
};

}  // namespace headrace
