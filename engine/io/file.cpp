#include "engine/io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/error.h"

namespace headrace {

File::File(std::string path, Mode mode) : path_(std::move(path)) {
  const int flags = (mode == Mode::kRead ? O_RDONLY : O_RDWR | O_CREAT | O_TRUNC) | O_CLOEXEC;
  descriptor_ = ::open(path_.c_str(), flags | O_DIRECT, 0644);
  direct_ = descriptor_ >= 0;
  if (descriptor_ < 0 && errno == EINVAL) descriptor_ = ::open(path_.c_str(), flags, 0644);
  if (descriptor_ < 0) {
    throw IoError(path_ + " cannot be opened" + (mode == Mode::kRead ? "" : " for writing") + ": " +
                  std::strerror(errno));
  }
}

File::~File() { ::close(descriptor_); }

uint64_t File::size() const {
  struct stat status = {};
  if (::fstat(descriptor_, &status) != 0) throw IoError(path_ + ": " + std::strerror(errno));
  return static_cast<uint64_t>(status.st_size);
}

}  // namespace headrace
