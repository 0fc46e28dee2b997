// A file descriptor with the checks that the results file and its manifest share.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace headrace {

// IoError: "<what> failed: <text of error_number>. <cure for it>".
[[noreturn]] void throw_io(const std::string& what, int error_number);

// One thread, but sync() may run beside the others.
class OpenFile {
 public:
  // O_CLOEXEC is added, new files get mode 0666 less the umask. `purpose` is the verb of the
  // message. Throws UsageError for a path that cannot be right (missing directory, a directory),
  // IoError for the rest.
  OpenFile(std::string path, int flags, std::string_view purpose);
  // Takes no ownership of `fd`.
  static OpenFile standard_output();
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }

  // Throws IoError; what was written before the error stays in the file.
  void write_all(std::string_view bytes) const;
  // From the file position; less than `size` only at the end of the file.
  size_t read_up_to(char* bytes, size_t size) const;
  void sync() const;  // fsync

 private:
  OpenFile(std::string path, int fd) : path_(std::move(path)), fd_(fd), owned_(false) {}

  std::string path_;
  int fd_;
  bool owned_ = true;
};

}  // namespace headrace
