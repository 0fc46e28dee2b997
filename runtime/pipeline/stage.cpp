#include "runtime/pipeline/stage.h"

#include <algorithm>
#include <cstring>

#include "engine/timeline.h"

namespace headrace {
namespace {

uint64_t sample_bytes(const ModelConfig& config, const StageRange& range, int64_t logit_rows) {
  if (!range.is_last) return 0;
  return static_cast<uint64_t>(logit_rows * (config.d_model + config.vocab_size)) * sizeof(float);
}

KvStore make_kv(const KvPageShape& shape, int layers, const Stage::Sizes& sizes,
                const KvDiskAccess& access, MemoryBudget& budget) {
  if (sizes.kv_disk_pages == 0) return KvStore(shape, layers, sizes.kv_pages, sizes.slots, budget);
  KvDiskOptions disk;
  disk.directory = access.directory;
  disk.make_queue = access.make_queue;
  disk.pages = sizes.kv_disk_pages;
  disk.staging_pages = sizes.kv_staging_pages;
  disk.ahead = access.ahead;
  return KvStore(shape, layers, sizes.kv_pages, sizes.slots, sizes.step_rows, disk, budget);
}

}  // namespace

uint64_t Stage::kv_bytes(const ModelConfig& config, const StageRange& range, const Sizes& sizes) {
  const KvPageShape shape = page_shape(config, sizes.kv_format);
  if (sizes.kv_disk_pages == 0)
    return KvStore::bytes_per_page(shape, range.layers()) * sizes.kv_pages;
  const int64_t pages = sizes.kv_pages + KvStore::pages_in_use(sizes.slots, sizes.step_rows);
  return static_cast<uint64_t>(pages * range.layers() + sizes.kv_staging_pages) *
         io_aligned(shape.page_bytes());
}

KvPageShape Stage::page_shape(const ModelConfig& config, KvFormat format) {
  return {config.n_kv_heads, config.head_dim, format};
}

uint64_t Stage::fixed_bytes(const ModelConfig& config, const StageRange& range,
                            const Sizes& sizes) {
  return StageEngine::scratch_bytes(config, sizes.micro_batch_rows) +
         sample_bytes(config, range, sizes.logit_rows);
}

Stage::Stage(const ModelConfig& config, WeightStore& weights, const Cpu& cpu, MemoryBudget& budget,
             const Sizes& sizes, const KvDiskAccess& disk)
    : config_(config),
      range_(weights.range()),
      cpu_(cpu),
      kv_(make_kv(page_shape(config, sizes.kv_format), range_.layers(), sizes, disk, budget)),
      engine_(config, weights, kv_, cpu, budget, sizes.micro_batch_rows),
      logit_rows_(sizes.logit_rows),
      sampled_(budget.allocate(sample_bytes(config, range_, sizes.logit_rows), "logits")),
      prompt_tokens_(static_cast<size_t>(sizes.slots)) {
  if (range_.is_last) sampler_.emplace(cpu.kernels, sizes.slots, config.vocab_size);
}

std::optional<StepResult> Stage::run(const StepMessage& step, float* hidden) {
  const Compute computing;
  const Span span(Track::kCompute, "step", {Arg::kStep, static_cast<int64_t>(step.step)},
                  {Arg::kRows, step.rows()});
  count_rows(step);
  for (const int32_t slot : step.released) engine_.release(slot);
  std::vector<BatchItem> batch;
  for (const StepItem& item : step.items)
    batch.push_back({item.slot, item.first_position, item.rows});

  if (range_.is_first) engine_.embed(batch, step.tokens, hidden);
  engine_.sweep(batch, hidden);
  if (!range_.is_last) return std::nullopt;
  return sample(step, hidden);
}

void Stage::count_rows(const StepMessage& step) {
  Timeline* timeline = Timeline::of_thread();
  if (!timeline) return;
  for (const Admission& admission : step.admissions) {
    prompt_tokens_[admission.slot] = admission.prompt_tokens;
  }
  int64_t prompt = 0;
  for (const StepItem& item : step.items) {
    const int64_t left = prompt_tokens_[item.slot] - item.first_position;
    prompt += std::clamp<int64_t>(left, 0, item.rows);
  }
  timeline->count(Counter::kSteps, 1);
  timeline->count(Counter::kPrefillRows, prompt);
  timeline->count(Counter::kDecodeRows, step.rows() - prompt);
}

StepResult Stage::sample(const StepMessage& step, const float* hidden) {
  for (const Admission& admission : step.admissions) sampler_->admit(admission);
  struct Row {
    const StepItem* item;
    int64_t row;
  };
  std::vector<Row> wanted;
  int64_t row = 0;
  for (const StepItem& item : step.items) {
    sampler_->observe(item.slot, std::span(step.tokens).subspan(row, item.rows));
    row += item.rows;
    if (item.sample) wanted.push_back({&item, row - 1});
  }

  StepResult result{step.step, std::vector<SampledToken>(wanted.size())};
  auto* rows = sampled_.as<float>();
  float* logits = rows + logit_rows_ * config_.d_model;
  const auto at_once = static_cast<size_t>(logit_rows_);
  for (size_t done = 0; done < wanted.size(); done += at_once) {
    const auto count = std::min(at_once, wanted.size() - done);
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(rows + i * config_.d_model, hidden + wanted[done + i].row * config_.d_model,
                  config_.d_model * sizeof(float));
    }
    engine_.logits(rows, static_cast<int64_t>(count), logits);
    const Span span(Track::kCompute, "sample", {Arg::kRows, static_cast<int64_t>(count)});
    cpu_.threads.parallel_for(static_cast<int64_t>(count), [&](int64_t i) {
      const StepItem& item = *wanted[done + i].item;
      const std::span<float> row_logits(logits + i * config_.vocab_size, config_.vocab_size);
      result.tokens[done + i] =
          sampler_->sample(item.slot, item.first_position + item.rows - 1, row_logits);
    });
  }
  return result;
}

}  // namespace headrace
