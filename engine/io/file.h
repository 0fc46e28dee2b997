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

// Owner of a file descriptor. Const functions may run on any thread. All throw IoError.
class File {
 public:
  enum class Mode {
    kRead,       // an existing regular file
    kCreate,     // read and write, emptied or made
    kTemporary,  // read and write; `path` is a directory. The file has no name (or loses it at
                 // once), so nothing of it is left however the process ends.
  };
  // Opens with O_DIRECT where the file system can (tmpfs and some network ones cannot): transfers
  // then do not go through, and are not charged as, page cache.
  File(std::string path, Mode mode);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }
  // For messages; of a temporary file "DIRECTORY (temporary file)".
  const std::string& path() const { return path_; }
  bool is_direct() const { return direct_; }
  uint64_t size() const;

  // Reserves the disk for bytes [0, bytes) and makes the file that long, so that a full disk is
  // found now and not by a later write. Once reserved, a write beyond the end is refused. The error
  // names directory, need, free bytes and cure.
  void allocate(uint64_t bytes);
  // The bytes reserved, or the largest number before allocate().
  uint64_t allocated() const { return allocated_; }

  // Returns when everything written is on the disk.
  void sync() const;
  // Whether path() still leads to this file. False for a temporary one.
  bool is_named() const;

 private:
  bool open_temporary(int flags);

  std::string path_;
  std::string directory_;
  int descriptor_ = -1;
  bool direct_ = false;
  uint64_t allocated_ = UINT64_MAX;
};

}  // namespace headrace
