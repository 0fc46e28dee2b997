#include "runtime/report/host_facts.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "runtime/plan/cgroups.h"

namespace headrace {
namespace {

// The rest of the line that begins with `key`, behind the colon and blanks.
std::string field(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (!line.starts_with(key) || colon == line.npos) continue;
    const size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == line.npos ? "" : line.substr(begin);
  }
  return "";
}

// Of a field in kB, in bytes; 0 if it is not there.
uint64_t kib(const char* path, const std::string& key) {
  return std::strtoull(field(path, key).c_str(), nullptr, 10) << 10;
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

}  // namespace

std::string cpu_model() {
  const std::string model = field("/proc/cpuinfo", "model name");
  return model.empty() ? "unknown" : model;
}

Cores cores_of_this_process() {
  const auto all = static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
  return {all, known ? std::min(all, CPU_COUNT(&set)) : all, cpu_quota(all)};
}

int cpu_quota(int cores, const std::string& root) {
  double least = cores;
  for (const Cgroup& group : cgroups_of("cpu", root)) {
    double quota = 0, period = 0;  // microseconds; no number: no limit
    if (group.version == 1) {
      std::ifstream(group.directory + "/cpu.cfs_quota_us") >> quota;
      std::ifstream(group.directory + "/cpu.cfs_period_us") >> period;
    } else {
      std::ifstream(group.directory + "/cpu.max") >> quota >> period;
    }
    if (quota > 0 && period > 0) least = std::min(least, quota / period);
  }
  return std::max(1, static_cast<int>(std::ceil(least)));
}

uint64_t total_memory() { return kib("/proc/meminfo", "MemTotal"); }

uint64_t peak_memory() { return kib("/proc/self/status", "VmHWM"); }

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace headrace
