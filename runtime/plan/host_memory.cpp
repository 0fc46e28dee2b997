#include "runtime/plan/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "runtime/plan/cgroups.h"

namespace headrace {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// "max" and what is missing: no limit.
uint64_t read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : kNoLimit;
}

// The bytes of a key in a file of lines "key bytes"; 0 if it has none.
uint64_t read_key(const std::string& path, const std::string& wanted) {
  std::ifstream file(path);
  uint64_t value = 0;
  for (std::string key; file >> key >> value;) {
    if (key == wanted) return value;
  }
  return 0;
}

// What a group leaves to its processes.
uint64_t room_in(const Cgroup& group) {
  const bool old = group.version == 1;
  const std::string memory = group.directory + "/memory.";
  const uint64_t limit = read_number(memory + (old ? "limit_in_bytes" : "max"));
  const uint64_t used = read_number(memory + (old ? "usage_in_bytes" : "current"));
  if (limit >= (uint64_t{1} << 60) || used == kNoLimit) return kNoLimit;
  const std::string prefix = old ? "total_" : "";
  const uint64_t files = read_key(memory + "stat", prefix + "inactive_file") +
                         read_key(memory + "stat", prefix + "active_file");
  const uint64_t taken = used - std::min(used, files);
  return limit - std::min(limit, taken);
}

}  // namespace

uint64_t available_host_memory(const std::string& root) {
  uint64_t available = kNoLimit;
  std::ifstream meminfo(root + "/proc/meminfo");
  for (std::string key, unit; meminfo >> key;) {
    uint64_t kib = 0;
    meminfo >> kib;
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kib << 10;
  }
  for (const Cgroup& group : cgroups_of("memory", root)) {
    available = std::min(available, room_in(group));
  }
  return available;
}

uint64_t available_host_memory() { return available_host_memory(""); }

uint64_t default_host_memory(uint64_t available, int ranks_on_host) {
  const uint64_t outside = uint64_t{64} << 20;
  const uint64_t margin = std::max(available / 10, outside * static_cast<uint64_t>(ranks_on_host));
  return (available - std::min(margin, available / 2)) / static_cast<uint64_t>(ranks_on_host);
}

}  // namespace headrace
