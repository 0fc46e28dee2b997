#include "runtime/plan/cgroups.h"

#include <fstream>

namespace headrace {
namespace {

// In a comma-separated list.
bool has(const std::string& names, const std::string& name) {
  return ("," + names + ",").find("," + name + ",") != std::string::npos;
}

}  // namespace

std::vector<Cgroup> cgroups_of(const std::string& controller, const std::string& root) {
  std::vector<Cgroup> groups;
  const auto add_up_from = [&](std::string path, const std::string& mount, int version) {
    for (;;) {
      while (path.ends_with('/')) path.pop_back();
      groups.push_back({root + mount + path, version});
      if (path.empty()) return;
      path.erase(path.rfind('/'));
    }
  };
  // Lines "number:controllers:path"; version 2 has number 0 and no controllers.
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos || second + 1 >= line.size()) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (path.front() != '/') continue;
    if (has(controllers, controller)) add_up_from(path, "/sys/fs/cgroup/" + controller, 1);
    if (controllers.empty()) add_up_from(path, "/sys/fs/cgroup", 2);
  }
  return groups;
}

}  // namespace headrace
