// What checkpoints that lie in files have in common: open files and checked reads.
#pragma once

#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/read_file.h"

namespace headrace {

class FileCheckpoint : public Checkpoint {
 public:
  void read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const override;
  void drop_cache(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) const override;

 protected:
  // Appends to files_ and returns the file's index. Throws IoError, ModelError.
  int add_file(const std::string& path);
  const ReadFile& file(int index) const { return open_files_[static_cast<size_t>(index)]; }

 private:
  std::vector<ReadFile> open_files_;
};

// Throws ModelError unless [offset, offset + size) lies within the tensor.
void check_range(const TensorInfo& tensor, uint64_t offset, uint64_t size);

}  // namespace headrace
