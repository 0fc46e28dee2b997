// A file or directory that is written beside its place and then renamed into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace headrace {

// Holds "<out>.partial", locked so that no other process writes the same one. One thread, except
// write().
class StagedOutput {
 public:
  // Creates it, or takes over what a dead process left of it. Throws IoError.
  StagedOutput(std::string out, bool is_directory);
  // Removes it unless it was committed.
  ~StagedOutput();
  StagedOutput(const StagedOutput&) = delete;
  StagedOutput& operator=(const StagedOutput&) = delete;

  // Makes a file of this size and gives its number; `name` is empty if the output is that file.
  // Throws IoError with needed and free bytes where the disk is too full.
  size_t add_file(const std::string& name, uint64_t bytes);
  // Any thread. Throws IoError.
  void write(size_t file, uint64_t offset, std::span<const std::byte> data) const;
  // Syncs and renames. With `replace` what is there gives way, else that is an IoError.
  void commit(bool replace);

  // True for the names of files that a model directory of headrace consists of.
  static bool is_model_file(const std::string& name);

 private:
  struct File {
    std::string path;
    int fd;
  };
  void open_locked();
  void remove_partial();
  void rename_into_place(bool replace);

  std::string out_, partial_;
  bool is_directory_;
  bool committed_ = false;
  int lock_ = -1;  // the partial file or directory
  std::vector<File> files_;
};

}  // namespace headrace
