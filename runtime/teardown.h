// After an error a rank gives back what it has; a GPU that hangs never lets go of its memory.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <optional>
#include <string>

#include "comm/deadline.h"
#include "runtime/pipeline/pipeline.h"

namespace headrace {

// Must outlive what is given back; `wires` must outlive it.
class Teardown {
 public:
  Teardown(const Wires& wires, double peer_timeout)
      : wires_(wires), seconds_(std::max(kLeastSeconds, peer_timeout)) {}

  // Calls work(). What it throws ends this process in time, whatever hangs.
  template <typename Work>
  void limit_after(Work work) {
    try {
      work();
    } catch (...) {
      begin(std::current_exception());
      throw;
    }
  }

 private:
  static constexpr double kLeastSeconds = 10;

  void begin(const std::exception_ptr& error) {
    if (!wires_.give_up) return;
    limit_.emplace(std::chrono::duration<double>(seconds_), [this, error] {
      wires_.give_up(error, "this rank could not be ended within " +
                                std::to_string(std::lround(seconds_)) +
                                " s: a GPU or disk hangs; see to it before the next run");
    });
  }

  const Wires& wires_;
  const double seconds_;
  std::optional<Deadline> limit_;
};

}  // namespace headrace
