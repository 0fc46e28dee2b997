#include "runtime/results/file_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "engine/error.h"
#include "runtime/error.h"

namespace headrace {
namespace {

std::string cure_for(int error_number) {
  switch (error_number) {
    case ENOSPC:
      return "Free space on that disk and run again with --resume";
    case EDQUOT:
      return "The disk quota is used up: free space and run again with --resume";
    case EFBIG:
      return "The file size limit is reached: raise it (ulimit -f unlimited) and run again with "
             "--resume";
    case EACCES:
    case EPERM:
    case EROFS:
      return "Choose a path that this user may write, or change the permissions";
    case EPIPE:
      return "The program that read the results has ended: write to a file, or keep it running";
    default:
      return "Check the disk and run again with --resume";
  }
}

}  // namespace

void throw_io(const std::string& what, int error_number) {
  throw IoError(what + " failed: " + std::strerror(error_number) + ". " + cure_for(error_number));
}

OpenFile::OpenFile(std::string path, int flags, std::string_view purpose)
    : path_(std::move(path)), fd_(::open(path_.c_str(), flags | O_CLOEXEC, 0666)) {
  if (fd_ >= 0) return;
  const int error = errno;
  const std::string what = "opening " + path_ + " to " + std::string(purpose) + " it";
  switch (error) {
    case EISDIR:
      throw UsageError(what + " failed: it is a directory. Give the name of a file");
    case ENOENT:
    case ENOTDIR:
      throw UsageError(what + " failed: its directory does not exist. Make it (mkdir -p)");
    case ENAMETOOLONG:
      throw UsageError(what + " failed: the name is too long. Give a shorter one");
    default:
      throw_io(what, error);
  }
}

OpenFile OpenFile::standard_output() { return OpenFile("standard output", STDOUT_FILENO); }

OpenFile::~OpenFile() {
  if (owned_) ::close(fd_);
}

void OpenFile::write_all(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
    if (count > 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      throw_io("writing " + path_, count == 0 ? EIO : errno);
    }
  }
}

size_t OpenFile::read_up_to(char* bytes, size_t size) const {
  size_t done = 0;
  while (done < size) {
    const ssize_t count = ::read(fd_, bytes + done, size - done);
    if (count == 0) break;
    if (count > 0) {
      done += static_cast<size_t>(count);
    } else if (errno != EINTR) {
      throw_io("reading " + path_, errno);
    }
  }
  return done;
}

void OpenFile::sync() const {
  if (::fsync(fd_) != 0) throw_io("syncing " + path_, errno);
}

}  // namespace headrace
