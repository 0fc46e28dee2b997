#include "engine/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <tuple>
#include <utility>

#include "engine/error.h"
#include "engine/io/directory.h"
#include "engine/memory/budget.h"

namespace headrace {
namespace {

// Calls open(flags) with O_DIRECT, and without it where the file system has none.
template <typename Open>
std::pair<int, bool> open_direct(int flags, const Open& open) {
  int descriptor = open(flags | O_DIRECT);
  if (descriptor >= 0) return {descriptor, true};
  if (errno == EINVAL) descriptor = open(flags);
  return {descriptor, false};
}

int reserve(int descriptor, uint64_t bytes) {
  const auto length = static_cast<off_t>(bytes);
  while (::fallocate(descriptor, 0, 0, length) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

File::File(std::string path, Mode mode) : path_(std::move(path)) {
  if (mode == Mode::kTemporary) {
    directory_ = path_;
    path_ += " (temporary file)";
    if (open_temporary(O_RDWR | O_CLOEXEC)) return;
    throw IoError(directory_ + ": no temporary file can be made there: " + std::strerror(errno) +
                  "; give a directory that you may write to with --disk");
  }
  directory_ = std::filesystem::path(path_).parent_path().string();
  if (directory_.empty()) directory_ = ".";
  // O_NONBLOCK: opening a pipe must not wait for its other end. It is taken off again, because
  // io_uring does not wait on files that have it.
  const int flags = (mode == Mode::kRead ? O_RDONLY : O_RDWR | O_CREAT | O_TRUNC) | O_CLOEXEC;
  std::tie(descriptor_, direct_) =
      open_direct(flags | O_NONBLOCK, [this](int all) { return ::open(path_.c_str(), all, 0644); });
  struct stat status = {};
  std::string reason;
  if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) {
    reason = std::strerror(errno);
  } else if (!S_ISREG(status.st_mode)) {
    reason = "it is not a regular file";
  } else if (::fcntl(descriptor_, F_SETFL, direct_ ? O_DIRECT : 0) != 0) {
    reason = std::strerror(errno);
  }
  if (reason.empty()) return;
  if (descriptor_ >= 0) ::close(descriptor_);
  throw IoError(path_ + " cannot be opened" + (mode == Mode::kRead ? "" : " for writing") + ": " +
                reason);
}

bool File::open_temporary(int flags) {
  std::tie(descriptor_, direct_) = open_direct(
      flags, [this](int all) { return ::open(directory_.c_str(), all | O_TMPFILE, 0600); });
  if (descriptor_ >= 0) return true;
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT) return false;
  // A file system without O_TMPFILE. (mkostemp makes its pattern useless when it fails.)
  std::tie(descriptor_, direct_) = open_direct(flags & ~O_RDWR, [this](int all) {
    std::string pattern = directory_ + "/headrace-XXXXXX.temporary";
    const int made = ::mkostemps(pattern.data(), 10, all);
    if (made >= 0) ::unlink(pattern.c_str());
    return made;
  });
  return descriptor_ >= 0;
}

File::~File() { ::close(descriptor_); }

uint64_t File::size() const {
  struct stat status = {};
  if (::fstat(descriptor_, &status) != 0) throw IoError(path_ + ": " + std::strerror(errno));
  return static_cast<uint64_t>(status.st_size);
}

void File::allocate(uint64_t bytes) {
  int error = 0;
  if (bytes > static_cast<uint64_t>(std::numeric_limits<off_t>::max())) {
    error = EFBIG;
  } else if (bytes > 0) {
    error = reserve(descriptor_, bytes);
  }
  // A file system that cannot reserve: the free space says whether it would fit by now.
  if (error == EOPNOTSUPP) {
    error = free_bytes(directory_) < bytes                             ? ENOSPC
            : ::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0 ? errno
                                                                       : 0;
  }
  if (error != 0) {
    throw IoError(path_ + ": " + format_bytes(bytes) + " cannot be reserved in " + directory_ +
                  ": " + std::strerror(error) + " (" + format_bytes(free_bytes(directory_)) +
                  " free there); free some, or give another --disk");
  }
  allocated_ = bytes;
}

void File::sync() const {
  while (::fsync(descriptor_) != 0) {
    if (errno == EINTR) continue;
    throw IoError(path_ + " cannot be synced to the disk: " + std::strerror(errno));
  }
}

bool File::is_named() const {
  struct stat own = {}, named = {};
  return ::fstat(descriptor_, &own) == 0 && ::stat(path_.c_str(), &named) == 0 &&
         own.st_dev == named.st_dev && own.st_ino == named.st_ino;
}

}  // namespace headrace
