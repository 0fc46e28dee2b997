#include "engine/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "engine/error.h"

namespace headrace {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Spins until `done()`, at most `us` microseconds. Returns done().
template <typename Done>
bool spin(int us, Done done) {
  using Clock = std::chrono::steady_clock;
  if (done()) return true;
  if (us <= 0) return false;
  const auto end = Clock::now() + std::chrono::microseconds(us);
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads, int spin_us) : spin_us_(spin_us) {
  workers_.reserve(static_cast<size_t>(std::max(0, threads - 1)));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { worker(); });
  } catch (const std::system_error& e) {
    const size_t made = workers_.size();
    stop();
    throw ResourceMissing("of " + std::to_string(threads) + " compute threads only " +
                          std::to_string(made + 1) + " can be had (" + e.what() +
                          "): give a smaller --threads, or raise the limit (ulimit -u, ulimit -v, "
                          "pids.max of the cgroup)");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_ = true;
  ++epoch_;
  epoch_.notify_all();
  for (auto& thread : workers_) thread.join();
}

void ThreadPool::run(int64_t count, Call call, void* context) {
  // A worker that came late to the last loop may still be on its way out through the gate; it reads
  // nothing below unless it entered while open.
  call_ = call;
  context_ = context;
  count_ = count;
  error_ = nullptr;
  progress_.store(progress() + 1, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  gate_.fetch_or(kOpen);
  ++epoch_;
  epoch_.notify_all();
  work();
  gate_.fetch_and(~kOpen);
  while (!spin(spin_us_ + 1, [this] { return gate_.load() == 0; })) {
    const uint32_t inside = gate_.load();
    if (inside != 0) gate_.wait(inside);
  }
  if (error_) std::rethrow_exception(error_);
}

void ThreadPool::work() {
  for (;;) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= count_) return;
    try {
      call_(context_, i);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(count_, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::worker() {
  uint32_t seen = 0;
  for (;;) {
    if (!spin(spin_us_, [&] { return epoch_.load() != seen; })) epoch_.wait(seen);
    seen = epoch_.load();
    if (stop_) return;
    if (gate_.fetch_add(1) & kOpen) work();
    if ((gate_.fetch_sub(1) & ~kOpen) == 1) gate_.notify_all();
  }
}

}  // namespace headrace
