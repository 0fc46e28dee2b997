// What this machine does in a second, measured at the start of a run on the model's own weights and
// the disk's own files; what plans are made with.
#pragma once

#include <cstdint>
#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "engine/io/file.h"
#include "engine/memory/budget.h"
#include "engine/memory/weight_layout.h"
#include "engine/ops/cpu/cpu.h"

namespace headrace {

struct Rates {
  double disk = 0;        // bytes per second; 0: there is none
  double byte_s = 0;      // seconds per byte of packed weights for the first row of a step
  double byte_row_s = 0;  // and for each further row

  double compute_s(uint64_t weight_bytes, double rows) const {
    return static_cast<double>(weight_bytes) * (byte_s + byte_row_s * (rows > 1 ? rows - 1 : 0));
  }
};

// Times a linear layer over a few megabytes of the stage's first layer, with 1 row and with 32.
// Takes about 50 ms.
void measure_compute(const Checkpoint& checkpoint, const WeightLayout& layout, const Cpu& cpu,
                     MemoryBudget& budget, Rates& rates);

// Bytes per second of large reads, several under way, once the rate has settled. `file` has
// content; reads its first 64 MiB again and again. Takes a second.
double measure_read(const File& file, MemoryBudget& budget);
// The same with a temporary file of up to `most` bytes (but at least 1 MiB) in the directory.
// Throws IoError.
double measure_disk(const std::string& directory, uint64_t most, MemoryBudget& budget);

}  // namespace headrace
