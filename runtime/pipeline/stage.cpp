#include "runtime/pipeline/stage.h"

#include <algorithm>
#include <utility>

#include "engine/timeline.h"

namespace headrace {
namespace {

int all_slots(const Stage::Sizes& sizes) { return sizes.slots + sizes.kept_slots; }

KvStore make_kv(const KvPageShape& shape, int layers, const Stage::Sizes& sizes,
                const KvDiskAccess& access, MemoryBudget& budget) {
  if (sizes.kv_disk_pages == 0)
    return KvStore(shape, layers, sizes.kv_pages, all_slots(sizes), budget);
  const KvDiskOptions disk{access, sizes.kv_disk_pages, sizes.kv_staging_pages};
  return KvStore(shape, layers, sizes.kv_pages, all_slots(sizes), sizes.step_rows, disk, budget);
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
  return DeviceStage::page_shape(config, format);
}

uint64_t Stage::fixed_bytes(const ModelConfig& config, const StageRange& range,
                            const Sizes& sizes) {
  const uint64_t int8 = sizes.int8 ? StageEngine::int8_bytes(config, sizes.micro_batch_rows) : 0;
  return StageEngine::scratch_bytes(config, range, sizes.micro_batch_rows, sizes.logit_rows) + int8;
}

Stage::Stage(const ModelConfig& config, WeightStore& weights, const Cpu& cpu, MemoryBudget& budget,
             const Sizes& sizes, const KvDiskAccess& disk)
    : config_(config),
      range_(weights.range()),
      cpu_(cpu),
      kv_(make_kv(page_shape(config, sizes.kv_format), range_.layers(), sizes, disk, budget)),
      engine_(config, weights, kv_, cpu, budget, sizes.micro_batch_rows, sizes.logit_rows,
              sizes.int8),
      sizes_(sizes),
      prompt_tokens_(static_cast<size_t>(all_slots(sizes))) {
  if (range_.is_last) sampler_.emplace(cpu.kernels, all_slots(sizes), config.vocab_size);
}

Stage::Stage(const ModelConfig& config, WeightStore& weights, DeviceStage& device, const Cpu& cpu,
             MemoryBudget& budget, const Sizes& sizes)
    : config_(config),
      range_(weights.range()),
      cpu_(cpu),
      kv_(page_shape(config, sizes.kv_format), range_.layers(), all_slots(sizes),
          device.kv_on_device(), device.kv_window()),
      engine_(config, weights, device.weights(), kv_, device.ops(), device.scratch(), cpu, budget,
              sizes.micro_batch_rows, device.host_attention(), device.hidden_passage()),
      sizes_(sizes),
      prompt_tokens_(static_cast<size_t>(all_slots(sizes))) {
  if (range_.is_last) sampler_.emplace(cpu.kernels, all_slots(sizes), config.vocab_size);
}

void Stage::warm_up(float* hidden) {
  const int64_t slots = std::min<int64_t>({sizes_.slots, sizes_.kv_pages, sizes_.step_rows});
  const int64_t many =
      std::min({sizes_.micro_batch_rows, sizes_.kv_pages / slots * slots * kPageTokens,
                slots * config_.max_positions});
  for (const int64_t rows_of_each : {int64_t{1}, std::max<int64_t>(1, many / slots)}) {
    std::vector<BatchItem> batch;
    std::vector<int32_t> tokens;
    for (int64_t slot = 0; slot < slots; ++slot) {
      batch.push_back({static_cast<int>(slot), 0, rows_of_each});
    }
    const int64_t rows = slots * rows_of_each;
    for (int64_t i = 0; i < rows; ++i) {
      tokens.push_back(static_cast<int32_t>(i * 7919 % config_.vocab_size));
    }
    if (range_.is_first) {
      engine_.embed(batch, tokens, hidden);
    } else {
      for (int64_t i = 0; i < rows * config_.d_model; ++i) {
        hidden[i] = static_cast<float>(i * 7919 % 2003) * 1e-3f - 1.0f;
      }
    }
    if (range_.is_last) {
      std::vector<int64_t> sampled;
      for (int64_t slot = 0; slot < slots; ++slot) sampled.push_back((slot + 1) * rows_of_each - 1);
      engine_.sweep(batch, hidden, sampled);
      std::vector<BestToken> best(sampled.size());
      engine_.head(hidden, best, 0, {});
    } else {
      engine_.sweep(batch, hidden);
    }
    for (const BatchItem& item : batch) engine_.release(item.slot);
  }
}

std::optional<StepResult> Stage::run(const StepMessage& step, float* hidden,
                                     const HiddenPlace& place) {
  const Compute computing;
  const Span span(Track::kCompute, "step", {Arg::kStep, static_cast<int64_t>(step.step)},
                  {Arg::kRows, step.rows()});
  count_rows(step);
  make(step.changes);
  std::vector<BatchItem> batch;
  for (const StepItem& item : step.items)
    batch.push_back({item.slot, item.first_position, item.rows});

  engine_.work_in(place);
  if (range_.is_first) engine_.embed(batch, step.tokens, hidden);
  if (range_.is_last) {
    engine_.sweep(batch, hidden, sampled_rows(step));
    return sample(step, hidden);
  }
  engine_.sweep(batch, hidden);
  return std::nullopt;
}

void Stage::make(const std::vector<KvChange>& changes) {
  for (const KvChange& change : changes) {
    if (change.from < 0) {
      engine_.release(change.slot);
    } else {
      engine_.share(change.slot, change.from, change.pages);
    }
  }
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

// The last row of every sequence that gets a token.
std::vector<int64_t> Stage::sampled_rows(const StepMessage& step) {
  std::vector<int64_t> rows;
  int64_t row = 0;
  for (const StepItem& item : step.items) {
    row += item.rows;
    if (item.sample) rows.push_back(row - 1);
  }
  return rows;
}

// hidden: sampled_rows(step).
StepResult Stage::sample(const StepMessage& step, float* hidden) {
  for (const Admission& admission : step.admissions) sampler_->admit(admission);
  struct Row {
    const StepItem* item;
    size_t result;  // of the step's results
  };
  std::vector<Row> wanted;
  int64_t row = 0;
  for (const StepItem& item : step.items) {
    sampler_->observe(item.slot, std::span(step.tokens).subspan(row, item.rows));
    row += item.rows;
    if (item.sample) wanted.push_back({&item, wanted.size()});
  }
  // Those that need no logits come first.
  const int64_t width = config_.d_model;
  size_t best_rows = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (!sampler_->takes_best(wanted[i].item->slot)) continue;
    float* const to = hidden + static_cast<int64_t>(best_rows) * width;
    if (i != best_rows) std::swap_ranges(to, to + width, hidden + static_cast<int64_t>(i) * width);
    std::swap(wanted[best_rows++], wanted[i]);
  }

  StepResult result{step.step, std::vector<SampledToken>(wanted.size())};
  std::vector<BestToken> best(best_rows);
  const auto logit_rows = static_cast<int64_t>(wanted.size() - best_rows);
  engine_.head(hidden, best, logit_rows, [&](int64_t first, int64_t count, float* logits) {
    const Span span(Track::kCompute, "sample", {Arg::kRows, count});
    cpu_.threads.parallel_for(count, [&](int64_t i) {
      const Row& sampled = wanted[best_rows + static_cast<size_t>(first + i)];
      const StepItem& item = *sampled.item;
      result.tokens[sampled.result] =
          sampler_->sample(item.slot, item.first_position + item.rows - 1,
                           std::span<float>(logits + i * config_.vocab_size, config_.vocab_size));
    });
  });
  for (size_t i = 0; i < best_rows; ++i) {
    result.tokens[wanted[i].result] = Sampler::best(wanted[i].item->slot, best[i]);
  }
  return result;
}

}  // namespace headrace
