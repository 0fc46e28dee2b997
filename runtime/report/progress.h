// How a run is getting on: a line that rewrites itself on a terminal, log lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "runtime/schedule/coordinator.h"

namespace headrace {

enum class ProgressStyle {
  kNone,
  kLine,  // rewrites itself, four times a second
  kLog,   // a log line after 2 s, then every 10 s
};

class Progress {
 public:
  // `total`: requests to do in this run; negative if not known (standard input).
  Progress(int64_t total, ProgressStyle style);
  ~Progress() { clear_line(); }
  // Shows the state if it is time to.
  void update(const ScheduleCounts& counts, int64_t failed);
  // Takes the line off the terminal; call it before anything else is written there.
  void clear_line();
  // Logs the summary of the run.
  void finish(const ScheduleCounts& counts, int64_t failed);

 private:
  using Clock = std::chrono::steady_clock;
  std::string line(const ScheduleCounts& counts, int64_t failed) const;

  int64_t total_;
  ProgressStyle style_;
  bool line_open_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point due_;
};

// "1:02:03", "4:05"
std::string format_duration(double seconds);

}  // namespace headrace
