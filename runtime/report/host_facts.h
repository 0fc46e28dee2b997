// What the operating system knows of this process and its machine.
#pragma once

#include <cstdint>
#include <string>

namespace headrace {

// "model name" of /proc/cpuinfo, or "unknown".
std::string cpu_model();
// The most memory this process had resident so far (VmHWM), in bytes; 0 if not known.
uint64_t peak_memory();
// CPU time of all threads of this process so far, user and system, in seconds.
double cpu_seconds();

}  // namespace headrace
