#include "engine/io/directory.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "engine/error.h"

namespace headrace {

void make_writable_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error && !std::filesystem::is_directory(path, error) && !error) {
    error = std::make_error_code(std::errc::not_a_directory);
  }
  if (!error && ::access(path.c_str(), W_OK | X_OK) != 0) {
    error = std::error_code(errno, std::generic_category());
  }
  if (!error) return;
  throw IoError(path + " cannot be used for the offload file: " + error.message() +
                "; give a directory that you may write to with --disk");
}

uint64_t free_bytes(const std::string& path) {
  struct statvfs status = {};
  while (::statvfs(path.c_str(), &status) != 0) {
    if (errno == EINTR) continue;
    throw IoError(path + ": the free space cannot be read: " + std::strerror(errno));
  }
  return uint64_t{status.f_bavail} * status.f_frsize;
}

void sync_directory(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  // EINVAL: a file system that has nothing to sync in a directory.
  const bool failed = descriptor < 0 || (::fsync(descriptor) != 0 && errno != EINVAL);
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (failed) throw IoError(path + " cannot be synced: " + std::strerror(error));
}

}  // namespace headrace
