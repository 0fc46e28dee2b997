// What the operating system knows of this process and its machine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace headrace {

// "model name" of /proc/cpuinfo, or "unknown".
std::string cpu_model();
// Cores of this machine, those that this process may run on, and as many as its control group gives
// it the time of.
struct Cores {
  int machine = 1, usable = 1, quota = 1;

  bool bound() const { return usable < machine; }
  // A rank's part: all that it is bound to, else its share of the machine's; and no more than its
  // share of the time, for who takes more is stopped again and again.
  int for_one_of(int ranks_on_host) const {
    const int cores = bound() ? usable : machine / ranks_on_host;
    return std::max(1, std::min(cores, quota / ranks_on_host));
  }
  // To one core where a rank's part would be more: a launcher's default, most likely.
  bool bound_to_one(int ranks_on_host) const {
    return usable == 1 && machine / ranks_on_host > 1;
  }
};
Cores cores_of_this_process();
// Of the CPU quotas of this process's control groups (cpu.max, or cpu.cfs_quota_us) the least, in
// cores, rounded up; at most `cores`. `root`: of the file system, for tests.
int cpu_quota(int cores, const std::string& root = "");

// Of this machine, in bytes; 0 if not known.
uint64_t total_memory();
// The most memory this process had resident so far (VmHWM), in bytes; 0 if not known.
uint64_t peak_memory();
// CPU time of all threads of this process so far, user and system, in seconds.
double cpu_seconds();

}  // namespace headrace
