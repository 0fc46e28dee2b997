// One stage of an engine, run in any of the ways that may not change a bit.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/device/device_stage.h"
#include "engine/stage_engine.h"
#include "tests/device/fake_device.h"
#include "tests/unit/fault_queue.h"
#include "tests/unit/model_files.h"

namespace headrace::test {

// How an engine is run: nothing of this may change a bit.
struct RunShape {
  Target target = supported_targets().front();
  int threads = 1;
  int64_t chunk = 1000;  // tokens per sequence and step
  int64_t micro_batch_rows = 256;
  int64_t logit_rows = 64;
  std::vector<int> stages = {};  // first layers of all stages but the first
  // Percent of the way from the least memory that weights can do with to all of it; none: all of
  // them in memory, without an offload file.
  std::optional<int> weight_memory = {};
  uint64_t read_ahead = 1 << 20;
  bool whole_layers = true;  // the ring holds a layer's weights until all micro-batches have passed
  bool keep_head = true;
  // KV pages that stay in memory, the others go to disk; none: all of them, without a disk.
  std::optional<int> kv_memory_pages = {};
  int kv_staging_pages = 4;
  bool ahead = true;  // false: the serial schedule
  IoMethod io = IoMethod::kAuto;
  bool hesitates = false;  // weights that have come are seen late, then many of them at once
  int device_slots = 0;    // layers at once on a device that computes them; 0: the CPU does
};

inline std::string describe(const RunShape& run) {
  std::string text = std::string(target_name(run.target)) + ", " + std::to_string(run.threads) +
                     " threads, chunks of " + std::to_string(run.chunk) + ", micro-batches of " +
                     std::to_string(run.micro_batch_rows);
  for (const int cut : run.stages) text += ", cut before layer " + std::to_string(cut);
  if (run.weight_memory) {
    text += ", weights " + std::to_string(*run.weight_memory) + " % in memory, " +
            format_bytes(run.read_ahead) + " ahead" + (run.whole_layers ? ", whole layers" : "") +
            (run.keep_head ? "" : ", the head like a layer");
  }
  if (run.kv_memory_pages) {
    text += ", " + std::to_string(*run.kv_memory_pages) + " KV pages in memory, staging of " +
            std::to_string(run.kv_staging_pages);
  }
  if (!run.ahead) text += ", serial";
  if (run.device_slots > 0)
    text += ", a device with " + std::to_string(run.device_slots) + " slots";
  if (run.io == IoMethod::kThreads) text += ", threads read";
  if (run.hesitates) text += ", weights come late, then many at once";
  return text;
}

using Sequences = std::vector<std::vector<int32_t>>;

inline Sequences random_sequences(const ModelConfig& config, const std::vector<int>& lengths) {
  std::mt19937_64 random(7);
  Sequences sequences;
  for (const int length : lengths) {
    std::vector<int32_t>& tokens = sequences.emplace_back();
    for (int i = 0; i < length; ++i) {
      tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab_size)));
    }
  }
  return sequences;
}

inline constexpr int kSlots = 8;
inline constexpr int64_t kKvPages = 64;
inline constexpr int64_t kMostRows = 16384;  // of a step

// One stage: its weights, its KV cache and its engine.
struct EngineStage {
  EngineStage(const Checkpoint& checkpoint, const StageRange& range, KvFormat kv_format,
              const Cpu& cpu, MemoryBudget& budget, const RunShape& run, bool int8 = false)
      : offload(open_offload(checkpoint, range, cpu, budget, run)),
        weights(make_weights(checkpoint, range, cpu, budget, run)),
        device(make_device(checkpoint, kv_format, cpu, budget, run)),
        kv(make_kv(checkpoint, range, kv_format, budget, run)),
        engine(make_engine(checkpoint.config(), cpu, budget, run, int8)) {}

  // In float32, with nothing resident.
  std::unique_ptr<DeviceStage> make_device(const Checkpoint& checkpoint, KvFormat format,
                                           const Cpu& cpu, MemoryBudget& budget,
                                           const RunShape& run) {
    if (run.device_slots == 0) return nullptr;
    DeviceStage::Sizes sizes;
    sizes.weights.slots = run.device_slots;
    sizes.kv_pages = kKvPages;
    sizes.kv_format = format;
    sizes.slots = static_cast<int>(kMostRows);  // logits of all rows are asked for
    sizes.step_rows = kMostRows;
    sizes.micro_batch_rows = run.micro_batch_rows;
    sizes.logit_rows = run.logit_rows;
    sizes.half = false;
    return std::make_unique<DeviceStage>(std::make_unique<FakeDevice>(17), checkpoint, weights,
                                         cpu.threads, budget, sizes);
  }

  StageEngine make_engine(const ModelConfig& config, const Cpu& cpu, MemoryBudget& budget,
                          const RunShape& run, bool int8) {
    if (!device) {
      return StageEngine(config, weights, kv, cpu, budget, run.micro_batch_rows, run.logit_rows,
                         int8);
    }
    return StageEngine(config, weights, device->weights(), kv, device->ops(), device->scratch(),
                       cpu, budget, run.micro_batch_rows);
  }

  static std::unique_ptr<OffloadFile> open_offload(const Checkpoint& checkpoint,
                                                   const StageRange& range, const Cpu& cpu,
                                                   MemoryBudget& budget, const RunShape& run) {
    if (!run.weight_memory) return nullptr;
    return OffloadFile::open_or_build({testing::TempDir() + "offload", UINT64_MAX}, checkpoint,
                                      range, weight_layout(checkpoint, range), budget, cpu.threads,
                                      [](const std::string&) {});
  }

  WeightStore make_weights(const Checkpoint& checkpoint, const StageRange& range, const Cpu& cpu,
                           MemoryBudget& budget, const RunShape& run) const {
    if (!offload) return WeightStore(checkpoint, range, budget, cpu.threads);
    const WeightLayout layout = weight_layout(checkpoint, range);
    const uint64_t least = smallest_placement(layout, run.whole_layers);
    const uint64_t all = layout.image_bytes();
    const uint64_t bytes = least + (all - least) * static_cast<uint64_t>(*run.weight_memory) / 100;
    return WeightStore(
        checkpoint, range,
        {place_weights(layout, bytes, {run.read_ahead, run.whole_layers, run.keep_head}), *offload,
         [&run]() -> std::unique_ptr<IoQueue> {
           return std::make_unique<FaultQueue>(make_io_queue(8, run.io),
                                               FaultQueue::Faults{.hesitates = run.hesitates});
         },
         run.ahead},
        budget, cpu.threads);
  }

  KvStore make_kv(const Checkpoint& checkpoint, const StageRange& range, KvFormat format,
                  MemoryBudget& budget, const RunShape& run) const {
    const KvPageShape shape{checkpoint.config().n_kv_heads, checkpoint.config().head_dim, format};
    if (device) return KvStore(shape, range.layers(), kSlots, device->kv_on_device());
    if (!run.kv_memory_pages) return KvStore(shape, range.layers(), kKvPages, kSlots, budget);
    KvDiskOptions disk;
    disk.directory = testing::TempDir();
    disk.make_queue = [&run] { return make_io_queue(16, run.io); };
    disk.pages = kKvPages - *run.kv_memory_pages;
    disk.staging_pages = run.kv_staging_pages;
    disk.ahead = run.ahead;
    return KvStore(shape, range.layers(), *run.kv_memory_pages, kSlots, 4096, disk, budget);
  }

  std::unique_ptr<OffloadFile> offload;
  WeightStore weights;
  std::unique_ptr<DeviceStage> device;
  KvStore kv;
  StageEngine engine;
};

}  // namespace headrace::test
