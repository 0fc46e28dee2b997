#include "runtime/plan/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <vector>

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

struct Version {
  std::string mount, limit, used, file_prefix;
};

// What a group leaves to its processes.
uint64_t room_in(const std::string& group, const Version& version) {
  const uint64_t limit = read_number(group + "/" + version.limit);
  const uint64_t used = read_number(group + "/" + version.used);
  if (limit >= (uint64_t{1} << 60) || used == kNoLimit) return kNoLimit;
  const std::string stat = group + "/memory.stat";
  const uint64_t files = read_key(stat, version.file_prefix + "inactive_file") +
                         read_key(stat, version.file_prefix + "active_file");
  const uint64_t taken = used - std::min(used, files);
  return limit - std::min(limit, taken);
}

// The group and those above it, up to the one that is mounted. In a container the path may be the
// host's, of which only the mounted root is there.
uint64_t room_up_from(std::string path, const std::string& root, const Version& version) {
  uint64_t room = kNoLimit;
  for (;;) {
    while (path.ends_with('/')) path.pop_back();
    room = std::min(room, room_in(root + version.mount + path, version));
    if (path.empty()) return room;
    path.erase(path.rfind('/'));
  }
}

// Of a comma-separated list.
bool names_memory(const std::string& controllers) {
  return ("," + controllers + ",").find(",memory,") != std::string::npos;
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
  const Version v1{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                   "total_"};
  const Version v2{"/sys/fs/cgroup", "memory.max", "memory.current", ""};
  // Lines "number:controllers:path"; version 2 has number 0 and no controllers.
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos || second + 1 >= line.size()) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (path.front() != '/') continue;
    if (names_memory(controllers)) available = std::min(available, room_up_from(path, root, v1));
    if (controllers.empty()) available = std::min(available, room_up_from(path, root, v2));
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
