#include "runtime/report/output_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/error.h"
#include "runtime/error.h"

namespace headrace {

namespace {

bool is_there(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

}  // namespace

OutputFile::OutputFile(std::string option, const std::string& path)
    : option_(std::move(option)),
      path_(path),
      is_new_(!is_there(path)),
      fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)) {
  if (fd_ < 0) {
    const int error = errno;
    const std::string what = option_ + " " + path_ + " cannot be opened: " + std::strerror(error);
    if (error == ENOENT || error == ENOTDIR) {
      throw UsageError(what + ". Make its directory (mkdir -p) or give another path");
    }
    if (error == EISDIR) throw UsageError(what + ". Give the name of a file");
    throw IoError(what + ". Choose a path that this user may write");
  }
  seekable_ = ::lseek(fd_, 0, SEEK_CUR) >= 0;
  struct stat status {};
  if (::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode)) end_ = status.st_size;
}

OutputFile::~OutputFile() {
  if (is_new_ && !written_) ::unlink(path_.c_str());
  ::close(fd_);
}

void OutputFile::fail(const char* what, int error_number) const {
  throw IoError(option_ + " " + path_ + ": " + what + " failed: " + std::strerror(error_number) +
                ". The results are not affected; free space or give another path for the next run");
}

void OutputFile::write_end(int64_t offset, std::string_view bytes) {
  written_ = true;
  if (seekable_ && ::lseek(fd_, offset, SEEK_SET) < 0) fail("seeking", errno);
  const int64_t end = offset + static_cast<int64_t>(bytes.size());
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
    if (count > 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      fail("writing", count == 0 ? EIO : errno);
    }
  }
  if (end < end_ && seekable_ && ::ftruncate(fd_, end) != 0) fail("truncating", errno);
  end_ = end;
}

namespace {

std::string closing(std::string_view other) {
  return "\n],\"otherData\":" + std::string(other) + "}\n";
}

}  // namespace

void TraceFile::append(std::string_view events, std::string_view other) {
  std::string text;
  if (events_end_ == 0) text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  if (!events.empty()) {
    if (std::exchange(has_events_, true)) text += ",\n";
    text += events;
  }
  const auto size = static_cast<int64_t>(text.size());
  if (file_.seekable()) text += closing(other);
  file_.write_end(events_end_, text);
  events_end_ += size;
}

void TraceFile::end(std::string_view other) { file_.write_end(events_end_, closing(other)); }

}  // namespace headrace
