// The compute threads of one rank. The caller of parallel_for works too, so a pool of one thread
// starts none.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace headrace {

class ThreadPool {
 public:
  // `spin_us`: how long an idle worker spins for the next loop before it sleeps. 0 where ranks
  // share cores: a spinning worker would take time from another rank. Throws ResourceMissing where
  // the system has not so many threads.
  explicit ThreadPool(int threads, int spin_us = 50);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // A number that grows while loops run and when moved_on() is called: tells a working rank from a
  // stuck one. Any thread.
  uint64_t progress() const {
    return progress_.load(std::memory_order_relaxed) +
           static_cast<uint64_t>(next_.load(std::memory_order_relaxed));
  }

  // Something that the caller of parallel_for waits for has gone on; that thread says so.
  void moved_on() {
    progress_.store(progress_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  // Calls f(i) once for each i in [0, count), on any thread, and returns when all are done. The
  // first exception is rethrown; items not yet begun are then skipped. One caller at a time; not
  // nested.
  template <typename F>
  void parallel_for(int64_t count, F&& f) {
    if (count <= 0) return;
    if (workers_.empty() || count == 1) {
      for (int64_t i = 0; i < count; ++i) {
        f(i);
        moved_on();
      }
      return;
    }
    auto call = [](void* context, int64_t i) {
      (*static_cast<std::remove_reference_t<F>*>(context))(i);
    };
    run(count, call, const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Call = void (*)(void* context, int64_t i);
  void run(int64_t count, Call call, void* context);
  void work();  // takes items of the open loop until none is left
  void worker();
  void stop();  // and joins all

  static constexpr uint32_t kOpen = 1u << 31;

  int spin_us_;
  std::vector<std::thread> workers_;
  // The loop being run. Written by the caller while closed; read by whoever entered while open.
  Call call_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  std::atomic<uint64_t> progress_{0};  // items and loops finished before the one being run
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> gate_{0};   // kOpen | workers inside
  alignas(64) std::atomic<uint32_t> epoch_{0};  // goes up when a loop opens or the pool stops
  std::atomic<bool> stop_{false};
};

}  // namespace headrace
