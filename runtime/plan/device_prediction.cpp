#include "runtime/plan/device_prediction.h"

#include <algorithm>
#include <cmath>

#include "engine/io/file.h"

namespace headrace {
namespace {

// Of the memory's rate, with which weights are expanded to f16; measured (tests/perf/gpu.md).
constexpr double kPlainExpansion = 0.8, kLowBitExpansion = 0.45;
// That a layer's kernels take to begin and end, besides what they read, in seconds; measured there.
constexpr double kLayerOverhead = 60e-6;
// Multiplications and additions in the time in which the device's memory moves a byte. Nominally
// 150 (A100) to 295 (H100, where 230 were measured) on tensor cores; a guess for float32 with a
// CPU's bits.
constexpr double kHalfOperations = 150, kFloatOperations = 10;

class DevicePrediction {
 public:
  DevicePrediction(const ModelConfig& config, const WeightLayout& layout, const Workload& workload,
                   const Rates& rates, int sequences, StagePlan& plan)
      : config_(config),
        layout_(layout),
        workload_(workload),
        rates_(rates),
        sequences_(sequences),
        plan_(plan),
        sizes_(plan.device->sizes),
        groups_(workload.groups_of(sequences)),
        prompt_(static_cast<double>(workload.prompt)),
        prompt_share_(prompt_ / static_cast<double>(std::max<int64_t>(1, workload.tokens))),
        streamed_(static_cast<double>(plan.device->streamed)),
        read_(static_cast<double>(plan.streamed)) {
    const KvPageShape shape = Stage::page_shape(config, sizes_.kv_format);
    page_ = static_cast<double>(KvStore::bytes_per_page(shape, layout.range.layers()));
    const auto bytes = static_cast<double>(shape.page_bytes());
    padded_ = static_cast<double>(io_aligned(shape.page_bytes())) / bytes;
    all_kv_ = static_cast<double>(usual_pages(config, workload, sequences)) * page_;
    const auto pages = static_cast<double>(sizes_.kv_pages);
    on_host_ = static_cast<double>(sizes_.kv_host_pages) / pages;
    on_disk_ = static_cast<double>(sizes_.kv_disk_pages) / pages;
  }

  // Weights and KV pages through the device's memory, what is not there over the link, and some off
  // the disk. The CPU attends to its pages while the device does so to the others, and shares the
  // host's memory with the link.
  void predict_round() const {
    const double kv = (1 + prompt_share_) / 2 * all_kv_;
    const double page_each = sequences_ * page_;  // goes back with a token in it
    const double cpus = on_host_ * sizes_.host_share;
    const double copied = groups_ * streamed_ + (on_host_ + on_disk_ - cpus) * (kv + page_each);
    plan_.link_s = copied / rates_.link;
    plan_.host_s = cpus * kv / page_ * layout_.range.layers() * rates_.attention_s;
    if (cpus > 0 && rates_.host_memory > 0) {
      plan_.host_s = std::max(plan_.host_s, (cpus * kv + copied) / rates_.host_memory);
    }
    plan_.compute_s = groups_ * (moved_weights() / rates_.device_memory +
                                 layout_.range.layers() * kLayerOverhead) +
                      std::max(plan_.host_s, (1 - cpus) * kv / rates_.device_memory);
    if (rates_.disk > 0) {
      // Full pages come in every round, and one in so many fills another.
      const double moved = std::max(0.0, kv - page_each / 2) + page_each / kPageTokens;
      plan_.disk_s = groups_ * read_ / rates_.disk + on_disk_ * moved * padded_ / rates_.kv_rate();
    }
    plan_.round_s = std::max({plan_.compute_s, plan_.link_s, plan_.disk_s});
    plan_.tokens_per_s = sequences_ / plan_.round_s;
  }

  void predict_all() const {
    const double answer = static_cast<double>(workload_.tokens) - prompt_;
    plan_.served_per_s = sequences_ * answer / (answer * plan_.round_s + prompts_s());
  }

 private:
  // What comes over is written; what is not rows of f16 is expanded; all is read.
  double moved_weights() const {
    const auto expanded = DeviceWeights::expansions(layout_, sizes_.weights);
    const auto expansion = [](const DeviceWeights::Expansion& e, double rate) {
      return static_cast<double>(e.packed + e.rows) / rate + static_cast<double>(e.rows);
    };
    return static_cast<double>(plan_.device->weights) + streamed_ +
           (sizes_.half ? expansion(expanded.plain, kPlainExpansion) +
                              expansion(expanded.low_bit, kLowBitExpansion)
                        : streamed_);
  }

  double prompts_s() const {
    const double link_s =
        (steps_of_prompts() * streamed_ + passing_rows() + (on_host_ + on_disk_) * prompt_kv()) /
        rates_.link;
    const double operations = sizes_.half ? kHalfOperations : kFloatOperations;
    const double products_s =
        2 * layer_weights() * sequences_ * prompt_ / (operations * rates_.device_memory);
    const double disk_s = rates_.disk > 0 ? steps_of_prompts() * read_ / rates_.disk +
                                                on_disk_ * prompt_kv() * padded_ / rates_.kv_rate()
                                          : 0;
    return std::max({link_s, products_s, disk_s});
  }

  double prompt_kv() const { return prompt_share_ * all_kv_; }

  double steps_of_prompts() const {
    const double together =
        workload_.group_of(sequences_) * prompt_ / static_cast<double>(sizes_.step_rows);
    return groups_ * std::ceil(std::max(together, prompt_ / static_cast<double>(workload_.chunk)));
  }

  // Bytes of prompts' hidden states that come to the device before each layer; as many go.
  double passing_rows() const {
    if (!sizes_.has_passing_rows()) return 0;
    return sequences_ * prompt_ * static_cast<double>(layout_.range.layers() * config_.d_model) *
           sizeof(float);
  }

  double layer_weights() const {
    int64_t weights = 0;
    for (const WeightUnit& unit : layout_.units) {
      if (unit.kind != WeightUnit::Kind::kLayer) continue;
      for (const PlacedMatrix& m : unit.matrices) weights += m.tensor->rows * m.tensor->cols;
    }
    return static_cast<double>(weights);
  }

  const ModelConfig& config_;
  const WeightLayout& layout_;
  const Workload& workload_;
  const Rates& rates_;
  int sequences_;
  StagePlan& plan_;
  const DeviceStage::Sizes& sizes_;
  double groups_, prompt_, prompt_share_;
  double streamed_, read_;  // bytes of weights in a step, over the link and off the disk
  // Bytes of KV pages: of one, in all layers; a page on disk over one; of all sequences at the end.
  double page_, padded_, all_kv_;
  double on_host_, on_disk_;  // of the pages
};

}  // namespace

void predict_on_device(const ModelConfig& config, const WeightLayout& layout,
                       const Workload& workload, const Rates& rates, int sequences,
                       StagePlan& plan) {
  if (rates.link == 0 || rates.device_memory == 0) return;
  plan.tokens = workload.tokens;
  plan.prompt = workload.prompt;
  const DevicePrediction prediction(config, layout, workload, rates, sequences, plan);
  prediction.predict_round();
  prediction.predict_all();
}

}  // namespace headrace
