// The directory that holds offload files: what else lies there, who uses it, what may go.
//
//   NAME.offload           a whole file; every user holds a shared flock on it
//   NAME.offload.building  one that is being built, or whose builder was killed
//   NAME.offload.lock      its builder holds an exclusive flock on it
//   headrace-XXXXXX.temporary   a nameless file's name, for a moment (engine/io/file.h)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace headrace {

inline constexpr char kBuildingSuffix[] = ".building";
inline constexpr char kLockSuffix[] = ".lock";

// The right to build an offload file; the lock file goes when this does. The kernel lets go of the
// lock when the process ends, however it ends.
class OffloadLock {
 public:
  // None if another process holds it. Throws IoError.
  static std::unique_ptr<OffloadLock> try_acquire(const std::string& offload_file);
  // Waits for the other process and says so. Throws IoError if the file that it builds does not
  // change for `patience_s` seconds.
  static std::unique_ptr<OffloadLock> acquire(const std::string& offload_file,
                                              const std::function<void(const std::string&)>& say,
                                              double patience_s = 300);
  ~OffloadLock();
  OffloadLock(const OffloadLock&) = delete;
  OffloadLock& operator=(const OffloadLock&) = delete;

 private:
  OffloadLock(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  std::string path_;
  int descriptor_;
};

struct OffloadEntry {
  enum class Kind { kFile, kUnfinished, kLock, kTemporary };
  Kind kind = Kind::kFile;
  std::string path;
  uint64_t bytes = 0;       // on disk
  bool in_use = false;      // by a running process
  std::string description;  // "SmolLM2 135M, layers 0 to 29"; "unfinished"
};

// What headrace put there, by name; nothing else is listed. Throws IoError.
std::vector<OffloadEntry> list_offload_directory(const std::string& directory);
// False if it is in use by now, or gone. Throws IoError if it cannot be removed.
bool remove_offload_entry(const OffloadEntry& entry);
// Removes what killed builders left, as far as it may. Throws IoError if the directory cannot be
// read.
void remove_unfinished(const std::string& directory);

}  // namespace headrace
