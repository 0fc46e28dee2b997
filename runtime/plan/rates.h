// What this machine does in a second, measured at the start of a run on the model's own weights and
// the disk's own files; what plans are made with.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "engine/io/file.h"
#include "engine/memory/budget.h"
#include "engine/memory/weight_layout.h"
#include "engine/ops/cpu/cpu.h"

namespace headrace {

struct Rates {
  double disk = 0;           // bytes per second; 0: there is none
  double byte_s = 0;         // seconds per byte of packed weights for the first row of a step
  double byte_row_s = 0;     // and for each further row
  double kv_disk = 0;        // bytes per second of KV pages, which are read in smaller pieces
  double attention_s = 0;    // seconds per KV page of a layer that a token attends to, all threads
  double link = 0;           // bytes per second to the GPU; 0: there is none
  double device_memory = 0;  // bytes per second of its own memory
  double host_memory = 0;    // bytes per second that all threads and the link read together; or 0

  double kv_rate() const { return kv_disk > 0 ? kv_disk : disk; }

  double compute_s(uint64_t weight_bytes, double rows) const {
    return static_cast<double>(weight_bytes) * (byte_s + byte_row_s * (rows > 1 ? rows - 1 : 0));
  }
};

// Times linear layers with 1 row and with 32, a few megabytes of each format that the stage's
// layers and head have, and takes the mean by their bytes. Tens of milliseconds per format. `int8`:
// in integers, where weights have codes.
void measure_compute(const Checkpoint& checkpoint, const WeightLayout& layout, const Cpu& cpu,
                     bool int8, MemoryBudget& budget, Rates& rates);
// Times attention of a token to long sequences, together of so many bytes. Tens of milliseconds.
void measure_attention(const ModelConfig& config, KvFormat format, const Cpu& cpu,
                       MemoryBudget& budget, Rates& rates, uint64_t most_bytes = 48 << 20);
// Bytes per second of all threads reading up to so many bytes, of memory that was written before.
// A third of a second, at whose beginning it calls `begins`. 0 where the budget has no room.
double measure_memory(ThreadPool& threads, MemoryBudget& budget, uint64_t most_bytes,
                      const std::function<void()>& begins = {});

// How the disk is read: `part` bytes at a time (a multiple of kIoAlignment), from one end to the
// other or here and there, with as many under way as make up 16 MiB.
struct ReadPattern {
  uint64_t part = 1 << 20;
  bool scattered = false;
};

// Bytes per second of several reads under way, once the rate has settled. `file` has content, of
// which 2 GiB at most are read, again and again where it has less. Takes a second.
double measure_read(const File& file, MemoryBudget& budget, const ReadPattern& pattern = {});
// A temporary file with content of up to `most` bytes (but at least 1 MiB) in the directory. Throws
// IoError.
std::unique_ptr<File> make_probe(const std::string& directory, uint64_t most, MemoryBudget& budget);
// measure_read of such a file.
double measure_disk(const std::string& directory, uint64_t most, MemoryBudget& budget,
                    const ReadPattern& pattern = {});

}  // namespace headrace
