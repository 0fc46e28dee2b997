#include "engine/checkpoint/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "engine/error.h"

namespace headrace {
namespace {

// One pread moves at most 2 GiB on Linux; larger requests are cut into such pieces.
constexpr size_t kMaxPiece = size_t{1} << 30;

std::string errno_text(const std::string& path, const char* action) {
  return path + ": cannot " + action + ": " + std::strerror(errno);
}

}  // namespace

ReadFile::ReadFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a pipe must not wait for a writer; on regular files it has no effect.
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) throw IoError(errno_text(path_, "open"));
  struct stat status {};
  if (::fstat(fd_, &status) != 0) {
    const std::string message = errno_text(path_, "read its size");
    ::close(fd_);
    throw IoError(message);
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(fd_);
    throw ModelError(path_ + ": is not a regular file; give a model file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

ReadFile::~ReadFile() {
  if (fd_ >= 0) ::close(fd_);
}

ReadFile::ReadFile(ReadFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

ReadFile& ReadFile::operator=(ReadFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  return *this;
}

void ReadFile::read(uint64_t offset, std::span<std::byte> out) const {
  constexpr uint64_t kMaxOffset = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
  if (offset > kMaxOffset || out.size() > kMaxOffset - offset) {
    throw ModelError(path_ + ": byte " + std::to_string(offset) + ": offset out of range");
  }
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = ::pread(fd_, out.data() + done, std::min(out.size() - done, kMaxPiece),
                                static_cast<off_t>(offset + done));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw IoError(errno_text(path_, "read") + " (at byte " + std::to_string(offset + done) + ")");
    }
    if (got == 0) {
      throw ModelError(path_ + ": truncated: ends at byte " + std::to_string(offset + done) +
                       " where byte " + std::to_string(offset + out.size()) +
                       " was expected; fetch the file again");
    }
    done += static_cast<size_t>(got);
  }
}

void ReadFile::drop_cache(uint64_t offset, uint64_t bytes) const {
  constexpr uint64_t kPage = 4096;
  // The kernel keeps a large folio (at most 2 MiB) that lies only partly in the range: take the
  // rest of the one at the beginning along.
  constexpr uint64_t kFolio = 2 << 20;
  const uint64_t begin = offset < kFolio ? 0 : (offset - kFolio) / kPage * kPage;
  const uint64_t end = (offset + bytes + kPage - 1) / kPage * kPage;
  if (bytes == 0) return;  // a length of 0 would stand for the rest of the file
  (void)::posix_fadvise(fd_, static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                        POSIX_FADV_DONTNEED);
}

bool is_there(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG) return false;
  const bool is_denied = errno == EACCES || errno == EPERM;
  throw IoError(errno_text(path, "look for it") + (is_denied ? "; check its permissions" : ""));
}

std::string read_text_file(const std::string& path, uint64_t limit) {
  const ReadFile file(path);
  if (file.size() > limit) {
    throw ModelError(path + ": " + std::to_string(file.size()) + " bytes, but at most " +
                     std::to_string(limit) + " are expected in such a file");
  }
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace headrace
