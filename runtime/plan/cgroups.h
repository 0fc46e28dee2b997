// The control groups of this process, as the kernel and containers show them.
#pragma once

#include <string>
#include <vector>

namespace headrace {

struct Cgroup {
  std::string directory;
  int version = 2;  // of the kernel's interface
};

// The process's group of a controller ("memory", "cpu") and those above it, up to the one that is
// mounted, of both versions. In a container the path may be the host's, of which only the mounted
// root is there: a directory may be missing. `root`: of the file system, for tests.
std::vector<Cgroup> cgroups_of(const std::string& controller, const std::string& root = "");

}  // namespace headrace
