#include "engine/io/thread_queue.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace headrace {

using io_detail::Transfer;

namespace {

// Moves all bytes of a transfer, or as many as can be.
void move_bytes(Transfer& t) {
  while (t.moved < t.bytes) {
    const auto offset = static_cast<off_t>(t.offset + t.moved);
    const ssize_t n =
        t.is_write ? ::pwrite(t.file->descriptor(), t.memory + t.moved, t.bytes - t.moved, offset)
                   : ::pread(t.file->descriptor(), t.memory + t.moved, t.bytes - t.moved, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) t.error = errno;
    if (n <= 0) return;
    t.moved += static_cast<size_t>(n);
    if (t.moved % kIoAlignment != 0) return;  // the end of the file
  }
}

}  // namespace

ThreadQueue::ThreadQueue(int depth, std::string reason)
    : depth_(depth), reason_(std::move(reason)) {
  for (int i = 0; i < std::min(depth, 16); ++i) threads_.emplace_back([this] { work(); });
}

ThreadQueue::~ThreadQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  queued_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

std::string ThreadQueue::description() const {
  return std::to_string(threads_.size()) + " threads" +
         (reason_.empty() ? "" : " (" + reason_ + ")");
}

IoTicket ThreadQueue::read(const File& file, uint64_t offset, std::span<std::byte> memory) {
  return start({&file, offset, memory.data(), memory.size(), false});
}

IoTicket ThreadQueue::write(const File& file, uint64_t offset, std::span<const std::byte> memory) {
  return start({&file, offset, const_cast<std::byte*>(memory.data()), memory.size(), true});
}

IoTicket ThreadQueue::start(const Transfer& transfer) {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return under_way_ < depth_; });
  const IoTicket ticket = log_.add(transfer);
  waiting_.push_back(ticket);
  ++under_way_;
  queued_.notify_one();
  return ticket;
}

void ThreadQueue::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    queued_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    const IoTicket ticket = waiting_.front();
    waiting_.pop_front();
    Transfer t = *log_.find(ticket);
    lock.unlock();
    move_bytes(t);
    lock.lock();
    t.done = true;
    *log_.find(ticket) = t;
    --under_way_;
    log_.forget_done();
    done_.notify_all();
  }
}

void ThreadQueue::wait(IoTicket ticket) {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] {
    const Transfer* t = log_.find(ticket);
    return !t || t->done;
  });
  if (const Transfer* t = log_.find(ticket)) check(*t);
}

bool ThreadQueue::finished(IoTicket ticket) {
  const std::lock_guard lock(mutex_);
  const Transfer* t = log_.find(ticket);
  return !t || t->done;
}

}  // namespace headrace
