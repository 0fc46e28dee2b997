#include "engine/io/uring_queue.h"

#include <sys/uio.h>

#include <cerrno>
#include <cstring>

namespace headrace {

using io_detail::Transfer;

UringQueue::UringQueue(int depth) : depth_(depth) {
  const int error = -io_uring_queue_init(static_cast<unsigned>(depth), &ring_, 0);
  if (error != 0) throw ResourceMissing(std::string("io_uring: ") + std::strerror(error));
}

UringQueue::~UringQueue() {
  while (under_way_ > 0) collect(true);
  io_uring_queue_exit(&ring_);
}

void UringQueue::register_memory(std::span<std::byte> memory) {
  const iovec vector = {memory.data(), memory.size()};
  if (registered_.empty() && io_uring_register_buffers(&ring_, &vector, 1) == 0)
    registered_ = memory;
}

IoTicket UringQueue::read(const File& file, uint64_t offset, std::span<std::byte> memory) {
  return start({&file, offset, memory.data(), memory.size(), false});
}

IoTicket UringQueue::write(const File& file, uint64_t offset, std::span<const std::byte> memory) {
  return start({&file, offset, const_cast<std::byte*>(memory.data()), memory.size(), true});
}

IoTicket UringQueue::start(const Transfer& transfer) {
  while (under_way_ >= depth_) collect(true);
  const IoTicket ticket = log_.add(transfer);
  submit(ticket, transfer);
  ++under_way_;
  return ticket;
}

void UringQueue::submit(IoTicket ticket, const Transfer& t) {
  io_uring_sqe* entry = io_uring_get_sqe(&ring_);
  std::byte* memory = t.memory + t.moved;
  const auto bytes = static_cast<unsigned>(t.bytes - t.moved);
  const uint64_t offset = t.offset + t.moved;
  const bool fixed =
      memory >= registered_.data() && memory + bytes <= registered_.data() + registered_.size();
  const int fd = t.file->descriptor();
  if (t.is_write) {
    fixed ? io_uring_prep_write_fixed(entry, fd, memory, bytes, offset, 0)
          : io_uring_prep_write(entry, fd, memory, bytes, offset);
  } else {
    fixed ? io_uring_prep_read_fixed(entry, fd, memory, bytes, offset, 0)
          : io_uring_prep_read(entry, fd, memory, bytes, offset);
  }
  io_uring_sqe_set_data64(entry, ticket);
  int rc;
  while ((rc = io_uring_submit(&ring_)) == -EINTR || rc == -EAGAIN || rc == -EBUSY) {
  }
  if (rc < 0) throw IoError(std::string("io_uring: submitting failed: ") + std::strerror(-rc));
}

void UringQueue::collect(bool block) {
  io_uring_cqe* entry = nullptr;
  int rc = 0;
  if (block) {
    while ((rc = io_uring_wait_cqe(&ring_, &entry)) == -EINTR) {
    }
    if (rc < 0) throw IoError(std::string("io_uring: waiting failed: ") + std::strerror(-rc));
  }
  while (io_uring_peek_cqe(&ring_, &entry) == 0) {
    const IoTicket ticket = io_uring_cqe_get_data64(entry);
    const int result = entry->res;
    io_uring_cqe_seen(&ring_, entry);
    complete(ticket, result);
  }
  log_.forget_done();
}

void UringQueue::complete(IoTicket ticket, int result) {
  Transfer& t = *log_.find(ticket);
  if (result == -EINTR || result == -EAGAIN) return submit(ticket, t);
  if (result > 0) t.moved += static_cast<size_t>(result);
  // A short transfer goes on where it stopped, if it stopped at a place that can be read from.
  if (result > 0 && t.moved < t.bytes && t.moved % kIoAlignment == 0) return submit(ticket, t);
  t.error = result < 0 ? -result : 0;
  t.done = true;
  --under_way_;
}

void UringQueue::wait(IoTicket ticket) {
  Transfer* t = log_.find(ticket);
  while (t && !t->done) {
    collect(true);
    t = log_.find(ticket);
  }
  if (t) check(*t);
}

bool UringQueue::finished(IoTicket ticket) {
  collect(false);
  const Transfer* t = log_.find(ticket);
  return !t || t->done;
}

}  // namespace headrace
