// The directory that files of a rank lie in.
#pragma once

#include <cstdint>
#include <string>

namespace headrace {

// Makes the directory and its parents where they are missing. Throws IoError that names the
// directory and --disk if that fails, if it is something else, or if it cannot be written to.
void make_writable_directory(const std::string& path);

// What the user may still write on the file system of `path`. Throws IoError.
uint64_t free_bytes(const std::string& path);

// Returns when files made, renamed and removed in the directory will be so after a power cut, too.
// Throws IoError.
void sync_directory(const std::string& path);

}  // namespace headrace
