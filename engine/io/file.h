// A file on a rank's own disk, opened for large aligned transfers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace headrace {

// Offsets, lengths and memory of transfers on a File are multiples of this.
inline constexpr size_t kIoAlignment = 4096;

constexpr uint64_t io_aligned(uint64_t bytes) {
  return (bytes + kIoAlignment - 1) / kIoAlignment * kIoAlignment;
}

// Owner of a file descriptor.
class File {
 public:
  enum class Mode { kRead, kCreate };  // kCreate: read and write, emptied or made
  // Opens with O_DIRECT where the file system can (tmpfs and some network ones cannot): reads then
  // do not go through, and are not charged as, page cache. Throws IoError.
  File(std::string path, Mode mode);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }
  const std::string& path() const { return path_; }
  bool is_direct() const { return direct_; }
  uint64_t size() const;  // throws IoError

 private:
  std::string path_;
  int descriptor_ = -1;
  bool direct_ = false;
};

}  // namespace headrace
