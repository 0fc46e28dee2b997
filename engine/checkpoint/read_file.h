// A regular file opened for positioned reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace headrace {

// Movable, not copyable. Reads may run on any number of threads at once.
class ReadFile {
 public:
  // Throws IoError if the file cannot be opened, ModelError if it is not a regular file.
  explicit ReadFile(std::string path);
  ~ReadFile();
  ReadFile(ReadFile&& other) noexcept;
  ReadFile& operator=(ReadFile&& other) noexcept;
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  const std::string& path() const { return path_; }
  // Bytes, as they were when the file was opened.
  uint64_t size() const { return size_; }

  // Fills `out` from byte `offset` on. Throws IoError, and ModelError ("truncated") if the file
  // ends before.
  void read(uint64_t offset, std::span<std::byte> out) const;
  // Takes these bytes, and up to 2 MiB before them, out of the page cache. Best effort.
  void drop_cache(uint64_t offset, uint64_t bytes) const;

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

// False if there is no such file or directory, or its name cannot be one. Throws IoError if that
// cannot be found out, as in a directory that this user may not search.
bool is_there(const std::string& path);

// The whole file as text. Throws like ReadFile, and ModelError if it is larger than `limit` bytes.
std::string read_text_file(const std::string& path, uint64_t limit);

}  // namespace headrace
