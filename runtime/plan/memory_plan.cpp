#include "runtime/plan/memory_plan.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "comm/activation_link.h"
#include "engine/error.h"
#include "engine/memory/offload_file.h"
#include "runtime/plan/stage_plan.h"

namespace headrace {
namespace {

constexpr uint64_t kRounding = 4096;  // of each buffer
// Read ahead at least: what a fast disk brings while the matrices of an attention are computed.
constexpr uint64_t kReadAhead = 8 << 20;
constexpr int64_t kLogitRows = 16;
// Where weights come from disk, memory is better used for weights than for larger micro-batches.
constexpr int64_t kMicroBatchRows = 128;
constexpr int64_t kMostLogitRows = 128;  // where a head on disk is read once for so many
constexpr int kKvSteps = 8;              // shares of the KV cache in memory that are tried

class Planner {
 public:
  Planner(const ModelConfig& config, const WeightLayout& layout, const Stage::Sizes& sizes,
          const Workload& workload, const PlanLimits& limits, const Rates& rates)
      : config_(config),
        layout_(layout),
        sizes_(sizes),
        workload_(workload),
        limits_(limits),
        rates_(rates),
        page_(KvStore::bytes_per_page(Stage::page_shape(config, sizes.kv_format),
                                      layout.range.layers())) {}

  StagePlan best() const {
    const int64_t useful = sizes_.slots * KvStore::pages_for(config_.max_positions);
    const std::optional<StagePlan> resident = all_in_memory(useful);
    const int64_t wanted = pages_wanted(workload_.sequences);
    if (resident && (resident->kv_pages() >= std::min(wanted, useful) || limits_.disk == 0)) {
      return *resident;
    }
    std::optional<StagePlan> best = resident;
    if (best && workload_.exact) best.reset();
    for (int b = workload_.sequences; b >= 1; b /= 2) {
      for (int step = kKvSteps; step >= 0; --step) {
        std::optional<StagePlan> plan = partly_on_disk(b, step);
        // Of equals, the one that has more sequences and more of its KV cache in memory.
        if (plan && (!best || plan->tokens_per_s > 1.01 * best->tokens_per_s)) best = plan;
      }
      if (best && workload_.exact) break;
    }
    if (best) return *best;
    if (resident) return *resident;
    throw DoesNotFit(refusal());
  }

 private:
  int64_t pages_wanted(int sequences) const {
    return sequences *
           KvStore::pages_for(std::min<int64_t>(workload_.tokens, config_.max_positions));
  }

  uint64_t activations(const Stage::Sizes& sizes) const {
    return Stage::fixed_bytes(config_, layout_.range, sizes) +
           kLinkBuffers * link_buffer_bytes(config_, sizes.step_rows) +
           kRounding * (kLinkBuffers + 3);
  }

  // Bytes of weights of which each sequence's token needs all.
  uint64_t vectors() const { return WeightStore::vector_bytes(layout_) + kRounding; }

  StagePlan start(const Stage::Sizes& sizes) const {
    StagePlan plan;
    plan.range = layout_.range;
    plan.sizes = sizes;
    plan.activations = activations(sizes);
    plan.all_weights = layout_.image_bytes() + vectors();
    plan.placement.streamed.assign(layout_.units.size(), 0);
    return plan;
  }

  std::optional<StagePlan> all_in_memory(int64_t useful) const {
    StagePlan plan = start(sizes_);
    plan.weights = plan.all_weights;
    const uint64_t fixed = plan.weights + plan.activations + kRounding;
    if (fixed + page_ > limits_.host_memory) return std::nullopt;
    uint64_t room = limits_.host_memory - fixed;
    if (limits_.kv_memory > 0) room = std::min(room, std::max(limits_.kv_memory, page_));
    plan.sizes.kv_pages = std::min(useful, static_cast<int64_t>(room / page_));
    plan.kv = Stage::kv_bytes(config_, layout_.range, plan.sizes);
    const int64_t a_sequence = std::max<int64_t>(1, pages_wanted(1));
    const auto sequences = static_cast<int>(
        std::clamp<int64_t>(plan.sizes.kv_pages / a_sequence, 1, workload_.sequences));
    predict(plan, sequences);
    return plan;
  }

  // `step` eighths of the KV cache of `sequences` sequences in memory.
  std::optional<StagePlan> partly_on_disk(int sequences, int step) const {
    if (limits_.disk == 0) return std::nullopt;
    Stage::Sizes sizes = sizes_;
    sizes.slots = sequences;
    sizes.micro_batch_rows = std::min(sizes.micro_batch_rows, kMicroBatchRows);
    const int64_t wanted = std::max<int64_t>(1, pages_wanted(sequences));
    sizes.kv_pages = wanted * step / kKvSteps;
    sizes.kv_disk_pages = wanted - sizes.kv_pages;
    if (sizes.kv_disk_pages > 0) {
      const int64_t longest = std::clamp<int64_t>(workload_.longest, 1, config_.max_positions);
      sizes.kv_staging_pages =
          std::min(wanted, std::max(KvStore::pages_for(longest), kUsefulStaging / stride_pages()));
    }
    const uint64_t kv = Stage::kv_bytes(config_, layout_.range, sizes) + 2 * kRounding;
    if (limits_.kv_memory > 0 && kv > std::max(limits_.kv_memory, page_)) return std::nullopt;
    for (const bool head_streamed : {false, true}) {
      sizes.logit_rows =
          head_streamed ? std::min<int64_t>({sequences, kMostLogitRows, sizes.micro_batch_rows})
                        : std::min<int64_t>(sequences, kLogitRows);
      StagePlan plan = start(sizes);
      const uint64_t fixed =
          plan.activations + vectors() + kv + kRounding * (layout_.units.size() + 2);
      if (fixed + smallest_placement(layout_) > limits_.host_memory) continue;
      plan.placement = place_weights(layout_, limits_.host_memory - fixed, kReadAhead);
      const bool streams_head =
          layout_.range.is_last && plan.placement.streamed[layout_.head_unit()] != 0;
      if (streams_head != head_streamed) continue;
      plan.kv = kv;
      plan.weights = resident_bytes(layout_, plan.placement) + vectors();
      plan.ring = ring_bytes(plan.placement);
      plan.streamed = streamed_bytes(layout_, plan.placement);
      if (!plan.placement.all_resident()) plan.disk += OffloadFile::file_bytes(layout_);
      if (sizes.kv_disk_pages > 0) {
        plan.disk += KvDisk::file_bytes(
            sizes.kv_disk_pages, sizes.slots,
            io_aligned(Stage::page_shape(config_, sizes_.kv_format).page_bytes()),
            layout_.range.layers());
      }
      if (plan.disk > limits_.disk) continue;
      predict(plan, sequences);
      return plan;
    }
    return std::nullopt;
  }

  // Staging memory of a visit that lets the disk work well, in bytes.
  static constexpr int64_t kUsefulStaging = 4 << 20;
  int64_t stride_pages() const {
    return static_cast<int64_t>(
        io_aligned(Stage::page_shape(config_, sizes_.kv_format).page_bytes()));
  }

  void predict(StagePlan& plan, int sequences) const {
    if (rates_.byte_s == 0) return;
    const double groups = std::min(workload_.groups, sequences);
    // Over a sequence's life three quarters of its pages are there on average where the prompt is
    // as long as the answer.
    const double pages = 0.75 * static_cast<double>(pages_wanted(sequences));
    const double on_disk = std::max(0.0, pages - static_cast<double>(plan.sizes.kv_pages));
    const double page = static_cast<double>(page_);
    plan.compute_s = groups * rates_.compute_s(compute_bytes(), sequences / groups) +
                     pages * page * rates_.byte_s;
    if (rates_.disk > 0) {
      plan.disk_s = (groups * static_cast<double>(plan.streamed) +
                     (plan.sizes.kv_disk_pages > 0 ? on_disk * page : 0.0)) /
                    rates_.disk;
    }
    plan.round_s =
        limits_.overlapped ? std::max(plan.compute_s, plan.disk_s) : plan.compute_s + plan.disk_s;
    plan.tokens_per_s = sequences / plan.round_s;
  }

  // Packed weights that a row passes: all but an embedding that is not the head, too.
  uint64_t compute_bytes() const {
    uint64_t bytes = 0;
    for (const WeightUnit& unit : layout_.units) {
      if (unit.kind != WeightUnit::Kind::kEmbedding) bytes += unit.image_bytes;
    }
    if (layout_.range.is_last && layout_.head_unit() == 0 && layout_.range.is_first) {
      bytes += layout_.units[0].matrices.front().bytes();
    }
    return bytes;
  }

  std::string refusal() const {
    Stage::Sizes one = sizes_;
    const bool stream = limits_.disk > 0;
    one.slots = 1;
    one.kv_pages = std::max<int64_t>(1, stream ? pages_wanted(1) : 1);
    if (stream) {
      one.micro_batch_rows = std::min(one.micro_batch_rows, kMicroBatchRows);
      one.logit_rows = 1;
    }
    StagePlan plan = start(one);
    const uint64_t weights = stream ? smallest_placement(layout_) + vectors() : plan.all_weights;
    const uint64_t kv = Stage::kv_bytes(config_, layout_.range, one);
    const uint64_t least = weights + plan.activations + kv + kRounding * (layout_.units.size() + 4);
    std::string text =
        "host memory is too small for this stage (" + describe(plan) + ")\n  weights      " +
        format_bytes(weights) +
        (stream ? " of " + format_bytes(plan.all_weights) + ", the rest from disk" : "") +
        "\n  activations  " + format_bytes(plan.activations) + "\n  KV cache     " +
        format_bytes(kv) + " at least\n  needed       " + format_bytes(least) +
        "\n  budget       " + format_bytes(limits_.host_memory);
    if (stream && least <= limits_.host_memory) {
      text += "\n  disk         " + format_bytes(OffloadFile::file_bytes(layout_)) +
              " needed, budget " + format_bytes(limits_.disk) +
              "\ngive more --disk-budget, or free space in --disk";
      return text;
    }
    return text + "\nuse more ranks, a machine with more memory, or --host-memory " +
           std::to_string((least >> 20) + 1) + "MiB where the machine has it";
  }

  const ModelConfig& config_;
  const WeightLayout& layout_;
  Stage::Sizes sizes_;
  Workload workload_;
  PlanLimits limits_;
  Rates rates_;
  uint64_t page_;  // in all layers
};

std::string text_of(const char* format, double a, double b = 0, double c = 0) {
  char text[128];
  std::snprintf(text, sizeof text, format, a, b, c);
  return text;
}

}  // namespace

StagePlan plan_stage(const ModelConfig& config, const WeightLayout& layout,
                     const Stage::Sizes& sizes, const Workload& workload, const PlanLimits& limits,
                     const Rates& rates) {
  return Planner(config, layout, sizes, workload, limits, rates).best();
}

std::string describe(const StagePlan& plan) {
  std::string text = "layers " + std::to_string(plan.range.first_layer) + "-" +
                     std::to_string(plan.range.end_layer - 1);
  if (plan.range.is_first) text += ", embedding";
  if (plan.range.is_last) text += ", head";
  text += ": weights " + format_bytes(plan.all_weights);
  if (!plan.placement.all_resident()) {
    text += " (" + format_bytes(plan.weights) + " in memory, " + format_bytes(plan.streamed) +
            " read per step through a ring of " + format_bytes(plan.ring) + ")";
  }
  text += ", activations " + format_bytes(plan.activations);
  if (plan.kv_pages() > 0) {
    text += ", KV cache " + format_bytes(plan.kv) + " (" +
            std::to_string(plan.kv_pages() * kPageTokens) + " tokens";
    if (plan.sizes.kv_disk_pages > 0) {
      text += ", " + std::to_string(plan.sizes.kv_disk_pages * kPageTokens) + " of them on disk";
    }
    text += ")";
  }
  if (plan.needs_disk()) text += ", disk " + format_bytes(plan.disk);
  return text;
}

std::string plan_table(const StagePlan& plan, const Rates& rates) {
  std::string text;
  const auto line = [&text](const char* name, const std::string& value) {
    text += "  ";
    text += name;
    text.append(14 - std::min<size_t>(13, std::strlen(name)), ' ');
    text += value + "\n";
  };
  line("layers",
       std::to_string(plan.range.first_layer) + "-" + std::to_string(plan.range.end_layer - 1) +
           (plan.range.is_first ? ", embedding" : "") + (plan.range.is_last ? ", head" : ""));
  line("weights", format_bytes(plan.all_weights) + ": " + format_bytes(plan.weights) +
                      " in memory, " + format_bytes(plan.streamed) + " read from disk per step");
  if (plan.ring > 0) {
    line("ring", format_bytes(plan.ring) + " for weights on their way");
  }
  line("KV cache", format_bytes(plan.kv) + " in memory; room for " +
                       std::to_string(plan.kv_pages() * kPageTokens) + " tokens, " +
                       std::to_string(plan.sizes.kv_disk_pages * kPageTokens) + " of them on disk");
  line("activations", format_bytes(plan.activations));
  line("memory", format_bytes(plan.weights + plan.ring + plan.kv + plan.activations));
  if (plan.needs_disk()) {
    line("disk", format_bytes(plan.disk) + text_of(", measured at %.0f MB/s", rates.disk / 1e6));
  }
  line("sequences", "up to " + std::to_string(plan.sizes.slots) + " in flight");
  if (plan.round_s > 0) line("expected", describe_prediction(plan));
  return text;
}

std::string describe_prediction(const StagePlan& plan) {
  if (plan.round_s == 0) return "";
  const std::string sequences =
      std::to_string(static_cast<int>(plan.tokens_per_s * plan.round_s + 0.5));
  std::string text = "a token for each of " + sequences + " sequences: computing " +
                     text_of("%.3f s", plan.compute_s);
  if (plan.needs_disk()) text += ", reading " + text_of("%.3f s", plan.disk_s);
  return text + text_of(", %.1f tokens/s", plan.tokens_per_s);
}

}  // namespace headrace
