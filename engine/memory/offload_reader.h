// Reads parts of an offload file once, in order, for what stays in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "engine/io/io_queue.h"
#include "engine/memory/budget.h"
#include "engine/memory/offload_file.h"
#include "engine/thread_pool.h"

namespace headrace {

// Compares bytes [from, from + data.size()) of a unit's image with the file's checksums, on all
// threads; bounds and errors as for OffloadFile::verify().
void verify_blocks(const OffloadFile& file, ThreadPool& threads, size_t unit, uint64_t from,
                   std::span<const std::byte> data);

// One thread uses it; file and threads must outlive it. Takes up to 4 MiB of the budget, and no
// less than 256 KiB. Throws DoesNotFit.
class OffloadReader {
 public:
  OffloadReader(const OffloadFile& file, std::unique_ptr<IoQueue> queue, MemoryBudget& budget,
                ThreadPool& threads);

  // Passes bytes [from, to) of a unit's image to `take` in parts, each with its place in the image
  // and checked; the first part may begin up to 256 KiB before `from`. `to` is a multiple of 256
  // KiB or the image's end. Throws IoError.
  using Take = std::function<void(uint64_t at, std::span<const std::byte> bytes)>;
  void read(size_t unit, uint64_t from, uint64_t to, const Take& take);

 private:
  const OffloadFile& file_;
  ThreadPool& threads_;
  Buffer memory_;
  std::unique_ptr<IoQueue> queue_;  // goes before the memory it reads to
};

}  // namespace headrace
