#include "engine/io/uring_queue.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "engine/error.h"

namespace headrace {

using io_detail::Transfer;

namespace {

[[noreturn]] void missing(int error) {
  throw ResourceMissing(std::string("io_uring: ") + std::strerror(error));
}

void submit_all(io_uring& ring) {
  int rc = 0;
  // EAGAIN and EBUSY: the kernel is short of memory for the moment.
  while ((rc = io_uring_submit(&ring)) == -EINTR || rc == -EAGAIN || rc == -EBUSY) sched_yield();
  if (rc < 0) throw IoError(std::string("io_uring: submitting failed: ") + std::strerror(-rc));
}

void await_completion(io_uring& ring) {
  io_uring_cqe* entry = nullptr;
  int rc = 0;
  while ((rc = io_uring_wait_cqe(&ring, &entry)) == -EINTR || rc == -EAGAIN) {
  }
  if (rc < 0) throw IoError(std::string("io_uring: waiting failed: ") + std::strerror(-rc));
}

}  // namespace

UringQueue::Ring::Ring(unsigned depth) : ring() {
  const int error = -io_uring_queue_init(depth, &ring, 0);
  if (error != 0) missing(error);
  try {
    try_out();
  } catch (...) {
    io_uring_queue_exit(&ring);
    throw;
  }
}

UringQueue::Ring::~Ring() { io_uring_queue_exit(&ring); }

// Kernels before 5.6 lack the operations, and a filter may let a ring be made but not be used.
void UringQueue::Ring::try_out() {
  io_uring_probe* probe = io_uring_get_probe_ring(&ring);
  const bool able = probe && io_uring_opcode_supported(probe, IORING_OP_READ) != 0 &&
                    io_uring_opcode_supported(probe, IORING_OP_WRITE) != 0;
  if (probe) io_uring_free_probe(probe);
  if (!able) missing(EOPNOTSUPP);
  io_uring_prep_nop(io_uring_get_sqe(&ring));
  const int rc = io_uring_submit_and_wait(&ring, 1);
  if (rc < 0 && rc != -EINTR) missing(-rc);
  await_completion(ring);
  io_uring_cq_advance(&ring, 1);
}

UringQueue::UringQueue(int depth) : ring_(static_cast<unsigned>(depth)), depth_(depth) {}

// Ends the process if waiting fails: the kernel would go on writing to memory that is given back.
UringQueue::~UringQueue() {
  while (under_way_ > 0) collect(true);
}

void UringQueue::register_memory(std::span<std::byte> memory) {
  while (under_way_ > 0) collect(true);
  if (!memory_.empty()) io_uring_unregister_buffers(&ring_.ring);
  const size_t before = memory_.size();
  // The kernel takes at most 1 GiB in one piece.
  for (size_t at = 0; at < memory.size(); at += io_detail::kMaxPiece) {
    memory_.push_back({memory.data() + at, std::min(memory.size() - at, io_detail::kMaxPiece)});
  }
  const auto use = [&] {
    const auto count = static_cast<unsigned>(memory_.size());
    return count == 0 || io_uring_register_buffers(&ring_.ring, memory_.data(), count) == 0;
  };
  if (use()) return;
  memory_.resize(before);  // too much for the limit of locked memory
  if (!use()) memory_.clear();
}

void UringQueue::register_file(const File& file) {
  while (under_way_ > 0) collect(true);
  if (!files_.empty()) io_uring_unregister_files(&ring_.ring);
  files_.push_back(&file);
  std::vector<int> descriptors;
  for (const File* each : files_) descriptors.push_back(each->descriptor());
  const auto count = static_cast<unsigned>(descriptors.size());
  if (io_uring_register_files(&ring_.ring, descriptors.data(), count) != 0) files_.clear();
}

int UringQueue::registered_memory(const std::byte* memory, size_t bytes) const {
  for (size_t i = 0; i < memory_.size(); ++i) {
    const auto* begin = static_cast<const std::byte*>(memory_[i].iov_base);
    if (memory >= begin && memory + bytes <= begin + memory_[i].iov_len) return static_cast<int>(i);
  }
  return -1;
}

int UringQueue::registered_file(const File& file) const {
  const auto found = std::find(files_.begin(), files_.end(), &file);
  return found == files_.end() ? -1 : static_cast<int>(found - files_.begin());
}

IoTicket UringQueue::read(const File& file, uint64_t offset, std::span<std::byte> memory) {
  return start({&file, offset, memory.data(), memory.size(), false});
}

IoTicket UringQueue::write(const File& file, uint64_t offset, std::span<const std::byte> memory) {
  return start({&file, offset, const_cast<std::byte*>(memory.data()), memory.size(), true});
}

IoTicket UringQueue::start(const Transfer& transfer) {
  check_request(transfer);
  while (under_way_ >= depth_) collect(true);
  const IoTicket ticket = log_.add(transfer);
  ++under_way_;
  submit(ticket, transfer);
  return ticket;
}

void UringQueue::submit(IoTicket ticket, const Transfer& t) {
  io_uring_sqe* entry = io_uring_get_sqe(&ring_.ring);
  std::byte* memory = t.next_memory();
  const auto bytes = static_cast<unsigned>(t.next_bytes());
  const int area = registered_memory(memory, bytes), file = registered_file(*t.file);
  const int descriptor = file >= 0 ? file : t.file->descriptor();
  if (t.is_write) {
    area >= 0 ? io_uring_prep_write_fixed(entry, descriptor, memory, bytes, t.next_offset(), area)
              : io_uring_prep_write(entry, descriptor, memory, bytes, t.next_offset());
  } else {
    area >= 0 ? io_uring_prep_read_fixed(entry, descriptor, memory, bytes, t.next_offset(), area)
              : io_uring_prep_read(entry, descriptor, memory, bytes, t.next_offset());
  }
  // Without O_DIRECT the kernel would copy from the page cache here and now; let it do that beside.
  unsigned flags = t.file->is_direct() ? 0 : IOSQE_ASYNC;
  if (file >= 0) flags |= IOSQE_FIXED_FILE;
  io_uring_sqe_set_flags(entry, flags);
  io_uring_sqe_set_data64(entry, ticket);
  submit_all(ring_.ring);
}

void UringQueue::collect(bool block) {
  if (block) await_completion(ring_.ring);
  io_uring_cqe* entry = nullptr;
  while (io_uring_peek_cqe(&ring_.ring, &entry) == 0) {
    const IoTicket ticket = io_uring_cqe_get_data64(entry);
    const int result = entry->res;
    io_uring_cqe_seen(&ring_.ring, entry);
    complete(ticket, result);
  }
  log_.forget_done();
}

void UringQueue::complete(IoTicket ticket, int result) {
  Transfer& t = *log_.find(ticket);
  if (advance(t, result)) return submit(ticket, t);
  t.done = true;
  --under_way_;
}

void UringQueue::wait(IoTicket ticket) {
  Transfer* t = log_.find(ticket);
  while (t && !t->done) {
    collect(true);
    t = log_.find(ticket);
  }
  if (t && !t->failure.empty()) throw IoError(t->failure);
}

bool UringQueue::finished(IoTicket ticket) {
  collect(false);
  const Transfer* t = log_.find(ticket);
  return !t || t->done;
}

}  // namespace headrace
