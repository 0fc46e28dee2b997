// How much memory this process may take.
#pragma once

#include <cstdint>
#include <string>

namespace headrace {

// Bytes a process may still take on this machine: MemAvailable, and less if a cgroup it is in (of
// version 1 or 2, itself or any above it) limits it. Pages of files count as free, for the kernel
// drops them first.
uint64_t available_host_memory();

// The same where "proc" and "sys" are in another directory than "/" (for tests).
uint64_t available_host_memory(const std::string& root);

// The budget of a rank that was given none: of what is available a tenth, but at least 64 MiB per
// rank, is left for code and libraries; never less than half is used.
uint64_t default_host_memory(uint64_t available, int ranks_on_host);

}  // namespace headrace
