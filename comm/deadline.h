// A time limit for calls that know none.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace headrace {

// Calls `expired`, on another thread, if this object still lives after the timeout. Only time in
// which the process runs counts: one that was stopped and goes on is not late.
class Deadline {
 public:
  Deadline(std::chrono::duration<double> timeout, std::function<void()> expired)
      : thread_([this, timeout, expired = std::move(expired)] {
          constexpr int kTicks = 50;
          std::unique_lock lock(mutex_);
          for (int tick = 0; tick < kTicks; ++tick) {
            if (over_.wait_for(lock, timeout / kTicks, [this] { return is_over_; })) return;
          }
          expired();
        }) {}
  ~Deadline() {
    {
      const std::lock_guard lock(mutex_);
      is_over_ = true;
      over_.notify_one();
    }
    thread_.join();
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool is_over_ = false;
  std::thread thread_;
};

}  // namespace headrace
