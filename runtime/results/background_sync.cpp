#include "runtime/results/background_sync.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>

namespace headrace {
namespace {

// Several results share one fdatasync; well below the second that is promised, because the call
// itself takes time.
constexpr std::chrono::milliseconds kGather{200};

}  // namespace

BackgroundSync::BackgroundSync(int fd, int64_t size) : fd_(fd), written_(size), durable_(size) {
  // A new thread inherits the mask: signals of the process go to the threads that expect them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

BackgroundSync::~BackgroundSync() { finish(); }

void BackgroundSync::written(int64_t size) {
  {
    const std::lock_guard lock(mutex_);
    written_ = size;
  }
  wake_.notify_one();
}

void BackgroundSync::finish() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

int BackgroundSync::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

int64_t BackgroundSync::durable() const {
  const std::lock_guard lock(mutex_);
  return durable_;
}

void BackgroundSync::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stop_ || written_ > durable_; });
    if (written_ <= durable_) return;
    wake_.wait_for(lock, kGather, [this] { return stop_; });
    const int64_t target = written_;
    lock.unlock();
    int error = 0;
    while ((error = ::fdatasync(fd_) == 0 ? 0 : errno) == EINTR) {
    }
    lock.lock();
    if (error != 0) {
      error_ = error;
      return;
    }
    durable_ = target;
  }
}

}  // namespace headrace
