// How a run is getting on: a line that rewrites itself on a terminal, log lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "runtime/schedule/coordinator.h"

namespace headrace {

class Progress {
 public:
  // `total`: requests to do in this run; negative if not known (standard input).
  Progress(int64_t total, bool quiet);
  // Shows the state, at most a few times a second on a terminal and every 10 s elsewhere.
  void update(const ScheduleCounts& counts, int64_t failed);
  // Ends the terminal line and logs the summary of the run.
  void finish(const ScheduleCounts& counts, int64_t failed);

 private:
  using Clock = std::chrono::steady_clock;
  std::string line(const ScheduleCounts& counts, int64_t failed) const;

  int64_t total_;
  bool quiet_;
  bool terminal_;
  bool line_open_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_ = start_;
};

// "1:02:03", "4:05"
std::string format_duration(double seconds);

}  // namespace headrace
