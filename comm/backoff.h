// How long a thread that polls sleeps between two looks.
#pragma once

#include <algorithm>
#include <chrono>
#include <utility>

namespace headrace {

// Spins for 50 us, then sleeps, 20 us doubling to 200 us. Where nothing has happened for long, it
// sleeps for a share of that time, up to 1 ms: it is late by that share of what it waited for, and
// a rank with nothing to do costs a fifth of the time.
class Backoff {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Backoff(Clock::time_point now) : since_(now) {}

  // Something has happened, or somebody begins to wait.
  void restart(Clock::time_point now) {
    since_ = now;
    pause_ = std::chrono::microseconds(20);
  }
  // The next sleep; none while spinning. `late`: the share of the wait; 0 if something is half way
  // and needs many looks.
  Clock::duration pause(Clock::time_point now, double late) {
    using std::chrono::microseconds;
    const Clock::duration idle = now - since_;
    if (idle < microseconds(50)) return {};
    const Clock::duration usual =
        std::exchange(pause_, std::min<Clock::duration>(2 * pause_, microseconds(200)));
    const auto share = std::chrono::duration_cast<Clock::duration>(late * idle);
    return std::clamp<Clock::duration>(share, usual, microseconds(1000));
  }

 private:
  Clock::time_point since_;
  Clock::duration pause_ = std::chrono::microseconds(20);
};

}  // namespace headrace
