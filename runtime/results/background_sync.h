// Makes appended data durable while the caller computes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace headrace {

// A thread that calls fdatasync within a fifth of a second of a write. Signals are blocked in it.
class BackgroundSync {
 public:
  // `fd` must stay open for this object's life; its first `size` bytes are durable.
  BackgroundSync(int fd, int64_t size);
  ~BackgroundSync();

  // The file has grown to `size` bytes. One thread, also for the following.
  void written(int64_t size);
  // Syncs what is left and ends the thread.
  void finish();

  // The errno of the fdatasync that failed, 0 if none did. After it nothing is synced any more.
  int error() const;
  // Bytes from the start of the file known to be on disk.
  int64_t durable() const;

 private:
  void run();

  const int fd_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  int64_t written_;
  int64_t durable_;
  int error_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace headrace
