// Writes a model's files: headers made in memory, tensor bytes streamed from a checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/thread_pool.h"

namespace headrace {

// Where a tensor goes. Gaps between tensors become zeros.
struct PlannedTensor {
  const TensorInfo* tensor = nullptr;
  uint64_t offset = 0;  // bytes from the start of the file
  // Not 0: the rows of each head of this size (elements, for a vector) are written interleaved, the
  // order that Checkpoint::qk_rows_interleaved describes.
  int interleaved_head = 0;
};

struct PlannedFile {
  std::string name;  // within the directory; empty if the model is this file
  std::string head;  // its first bytes
  std::vector<PlannedTensor> tensors;
  uint64_t bytes = 0;  // of the whole file
};

struct PlannedModel {
  bool is_directory = false;
  std::vector<PlannedFile> files;

  uint64_t bytes() const;
};

// Why `out` must not be written to, with the cure; empty if it may. Without `replace` anything that
// is there is in the way, except an empty directory for a directory. With it, a file gives way to a
// file and a directory that holds nothing but a model's files to a directory.
std::string in_the_way(const std::string& out, bool is_directory, bool replace);

// Writes the model beside `out` as "<out>.partial", syncs it and renames it, so that `out` is there
// whole or not at all; on an error or exception the partial one is removed. What a killed run left
// of it is written over. Takes about 1 MiB per thread. `progress` gets the tensor bytes written so
// far, after each piece of about 1 MiB, from any thread, one at a time; an exception from it stops
// the writing.
// Throws IoError (path, needed and free bytes, cure), ModelError.
void write_model(const Checkpoint& source, const PlannedModel& plan, const std::string& out,
                 bool replace, ThreadPool& threads,
                 const std::function<void(uint64_t written)>& progress);

}  // namespace headrace
