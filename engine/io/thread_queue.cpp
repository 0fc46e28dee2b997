#include "engine/io/thread_queue.h"

#include <pthread.h>

#include <algorithm>
#include <csignal>
#include <system_error>
#include <utility>

#include "engine/error.h"

namespace headrace {

using io_detail::Transfer;

ThreadQueue::ThreadQueue(int depth, std::string reason)
    : depth_(depth), reason_(std::move(reason)) {
  // Signals are for the thread that computes.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::string refused;
  try {
    for (int i = 0; i < std::min(depth, 16); ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error& error) {
    refused = error.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (threads_.empty()) {
    throw ResourceMissing("no thread can be started to read and write files: " + refused +
                          "; raise the limit of processes (ulimit -u)");
  }
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
  return std::to_string(threads_.size()) + (threads_.size() == 1 ? " thread" : " threads") +
         (reason_.empty() ? "" : " (" + reason_ + ")");
}

IoTicket ThreadQueue::read(const File& file, uint64_t offset, std::span<std::byte> memory) {
  return start({&file, offset, memory.data(), memory.size(), false});
}

IoTicket ThreadQueue::write(const File& file, uint64_t offset, std::span<const std::byte> memory) {
  return start({&file, offset, const_cast<std::byte*>(memory.data()), memory.size(), true});
}

IoTicket ThreadQueue::start(const Transfer& transfer) {
  check_request(transfer);
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
    move_all(t);
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
  const Transfer* t = log_.find(ticket);
  if (t && !t->failure.empty()) throw IoError(t->failure);
}

bool ThreadQueue::finished(IoTicket ticket) {
  const std::lock_guard lock(mutex_);
  const Transfer* t = log_.find(ticket);
  return !t || t->done;
}

}  // namespace headrace
