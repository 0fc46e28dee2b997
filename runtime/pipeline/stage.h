// One stage of the pipeline: the engine of its layers, and on the last stage the sampler.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "engine/device/device_stage.h"
#include "engine/memory/budget.h"
#include "engine/stage_engine.h"
#include "runtime/pipeline/sampler.h"
#include "runtime/schedule/step_message.h"

namespace headrace {

class Stage {
 public:
  struct Sizes {
    int slots = 1;                 // of sequences in flight
    int kept_slots = 0;            // besides them, see ScheduleLimits
    int64_t kv_pages = 0;          // in memory for good
    int64_t kv_disk_pages = 0;     // besides them
    int64_t kv_staging_pages = 0;  // where pages from disk come in; most that a sequence may have
    int64_t logit_rows = 16;       // rows whose logits are in memory at once, at least
    int64_t step_rows = 512;
    int64_t micro_batch_rows = 256;
    KvFormat kv_format = KvFormat::kF16;
    bool int8 = false;  // linear layers in integers; only where the stage is the CPU's
  };

  // `weights`, `cpu` and `budget` must outlive the stage. Throws DoesNotFit, IoError.
  Stage(const ModelConfig& config, WeightStore& weights, const Cpu& cpu, MemoryBudget& budget,
        const Sizes& sizes, const KvDiskAccess& disk = {});
  // The same on a device, which must outlive it; all KV pages are there.
  Stage(const ModelConfig& config, WeightStore& weights, DeviceStage& device, const Cpu& cpu,
        MemoryBudget& budget, const Sizes& sizes);

  // Goes through a step of few rows and one of many, which nothing is left of, so that what a
  // device does on the first of them is done. hidden: as for run(), overwritten.
  void warm_up(float* hidden);

  // Computes a step in place on hidden [step_rows][d_model]: what the previous stage sent, or what
  // the first stage embeds itself; a device may need fewer rows (DeviceStage::host_hidden_rows).
  // `place`: where that is on the stage's device, if it comes from there or goes there. On the last
  // stage returns the sampled tokens.
  std::optional<StepResult> run(const StepMessage& step, float* hidden,
                                const HiddenPlace& place = {});

  // Bytes of the buffers besides weights and KV pages.
  static uint64_t fixed_bytes(const ModelConfig& config, const StageRange& range,
                              const Sizes& sizes);
  static KvPageShape page_shape(const ModelConfig& config, KvFormat format);
  // Bytes of the KV cache in memory, staging included.
  static uint64_t kv_bytes(const ModelConfig& config, const StageRange& range, const Sizes& sizes);

 private:
  void make(const std::vector<KvChange>& changes);
  void count_rows(const StepMessage& step);
  static std::vector<int64_t> sampled_rows(const StepMessage& step);
  StepResult sample(const StepMessage& step, float* hidden);

  const ModelConfig& config_;
  StageRange range_;
  Cpu cpu_;
  KvStore kv_;
  StageEngine engine_;
  Sizes sizes_;
  std::optional<Sampler> sampler_;      // last stage
  std::vector<int32_t> prompt_tokens_;  // [slot], where a Timeline is attached
};

}  // namespace headrace
