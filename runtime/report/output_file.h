// The files of a run besides its results: trace and report. Their failure never costs results.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace headrace {

// One thread.
class OutputFile {
 public:
  // Makes the file where there is none; what one holds stays until the first write, and one that
  // this made and nothing was written to is removed again. `option` is what messages call it by, as
  // "--trace". Throws UsageError for a path that cannot be right, IoError for the rest.
  OutputFile(std::string option, const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  // Writes at `offset`, behind which nothing is left of what was there. Throws IoError.
  void write_end(int64_t offset, std::string_view bytes);
  // False for pipes and the like: they take bytes in order only.
  bool seekable() const { return seekable_; }

 private:
  [[noreturn]] void fail(const char* what, int error_number) const;

  std::string option_, path_;
  bool is_new_, written_ = false;
  int fd_;
  bool seekable_;
  int64_t end_ = 0;
};

// A JSON trace that is whole after every call, so that a run which is killed leaves a readable one.
class TraceFile {
 public:
  // Both throw as OutputFile does, and so does `begin`, which writes a trace without events.
  explicit TraceFile(const std::string& path) : file_("--trace", path) {}
  // `other`: an object with what else is known so far.
  void begin(std::string_view other) { append({}, other); }
  // Events joined by commas.
  void append(std::string_view events, std::string_view other);
  // Needed for pipes only.
  void end(std::string_view other);

 private:
  OutputFile file_;
  int64_t events_end_ = 0;
  bool has_events_ = false;
};

}  // namespace headrace
