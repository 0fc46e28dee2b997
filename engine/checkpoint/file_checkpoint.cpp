#include "engine/checkpoint/file_checkpoint.h"

#include "engine/error.h"

namespace headrace {

void check_range(const TensorInfo& tensor, uint64_t offset, uint64_t size) {
  if (offset > tensor.bytes || size > tensor.bytes - offset) {
    throw ModelError("tensor \"" + tensor.name + "\": bytes [" + std::to_string(offset) + ", +" +
                     std::to_string(size) + ") were asked for, but it has " +
                     std::to_string(tensor.bytes) + " bytes");
  }
}

int FileCheckpoint::add_file(const std::string& path) {
  open_files_.emplace_back(path);
  files_.push_back(path);
  file_bytes_.push_back(open_files_.back().size());
  return static_cast<int>(files_.size()) - 1;
}

void FileCheckpoint::read(const TensorInfo& tensor, uint64_t offset,
                          std::span<std::byte> out) const {
  check_range(tensor, offset, out.size());
  file(tensor.file).read(tensor.offset + offset, out);
}

void FileCheckpoint::drop_cache(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) const {
  check_range(tensor, offset, bytes);
  file(tensor.file).drop_cache(tensor.offset + offset, bytes);
}

}  // namespace headrace
