#include "runtime/report/host_facts.h"

#include <sys/resource.h>

#include <cstdlib>
#include <fstream>

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

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

}  // namespace

std::string cpu_model() {
  const std::string model = field("/proc/cpuinfo", "model name");
  return model.empty() ? "unknown" : model;
}

uint64_t peak_memory() {
  return std::strtoull(field("/proc/self/status", "VmHWM").c_str(), nullptr, 10) << 10;  // kB
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace headrace
