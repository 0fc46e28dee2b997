#include "runtime/plan/memory_plan.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/memory/offload_file.h"
#include "runtime/plan/stage_plan.h"

namespace headrace {
namespace {

constexpr uint64_t kRounding = 4096;  // of each buffer
// Read ahead: what a fast disk brings while the matrices of an attention are computed, or more.
constexpr uint64_t kReadAheads[] = {8 << 20, 24 << 20};
constexpr int64_t kLogitRows = 16;
constexpr int64_t kMostLogitRows = 128;  // where a head on disk is read once for so many
constexpr int64_t kLeastMicroRows = 32, kUsefulMicroRows = 128;
constexpr int kKvSteps = 8;  // shares of the KV cache in memory that are tried

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
    if (best && (workload_.exact || best->kv_pages() < longest_pages())) best.reset();
    for (int b = workload_.sequences; b >= 1; b /= 2) {
      for (int step = kKvSteps; step >= 0; --step) {
        std::optional<StagePlan> plan = partly_on_disk(b, step);
        // Of equals, the one that has more sequences and more of its KV cache in memory.
        if (plan && (!best || plan->served_per_s > 1.01 * best->served_per_s)) best = plan;
      }
      if (best && workload_.exact) break;
    }
    if (best) return *best;
    if (resident) return *resident;
    throw DoesNotFit(refusal());
  }

 private:
  // KV pages of so many usual sequences.
  int64_t usual_pages(int sequences) const {
    return sequences *
           KvStore::pages_for(std::clamp<int64_t>(workload_.tokens, 1, config_.max_positions));
  }

  int64_t longest_pages() const {
    return KvStore::pages_for(std::clamp<int64_t>(workload_.longest, 1, config_.max_positions));
  }

  // Whatever the memory, one of the longest sequences has room beside usual ones: a request must
  // not fail in one placement and be served in another.
  int64_t pages_wanted(int sequences) const {
    return usual_pages(sequences - 1) + std::max(usual_pages(1), longest_pages());
  }

  uint64_t activations(const Stage::Sizes& sizes) const {
    const auto buffers = static_cast<uint64_t>(link_buffers(layout_.range));
    return Stage::fixed_bytes(config_, layout_.range, sizes) +
           buffers * link_buffer_bytes(config_, sizes.step_rows) + kRounding * (buffers + 2);
  }

  // Norms and biases, which are always in memory.
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
    const auto sequences = static_cast<int>(
        std::clamp<int64_t>(plan.sizes.kv_pages / usual_pages(1), 1, workload_.sequences));
    predict(plan, sequences);
    return plan;
  }

  // How a stage that does not keep all its weights goes through a step.
  struct Sweep {
    int64_t micro_batch_rows;
    int64_t step_rows;
    // A step is several micro-batches, or one, to which the weights are gone once it has used them.
    bool whole_layers;
    uint64_t ahead;
  };

  // The larger a step the fewer the passes over the weights for prompts, the smaller its buffers
  // the fewer bytes in each pass.
  std::vector<Sweep> sweeps(int sequences, bool kv_on_disk) const {
    std::vector<Sweep> all;
    const int64_t most = sizes_.step_rows;
    const int64_t least =
        std::max({std::min(most, workload_.least_step_rows), std::min(most, kLeastMicroRows),
                  std::min<int64_t>(most, (sequences - 1) / workload_.groups + 1)});
    for (const uint64_t ahead : kReadAheads) {
      for (int64_t power = least; power < 2 * most; power *= 2) {
        const int64_t rows = std::min(power, most);
        // The staging memory of a KV cache on disk cuts a step into micro-batches.
        if (!kv_on_disk) all.push_back({rows, rows, false, ahead});
        if (kv_on_disk || rows > kUsefulMicroRows) {
          all.push_back({std::min(rows, kUsefulMicroRows), rows, true, ahead});
        }
      }
    }
    return all;
  }

  // `step` eighths of the KV cache of `sequences` sequences in memory.
  std::optional<StagePlan> partly_on_disk(int sequences, int step) const {
    if (limits_.disk == 0) return std::nullopt;
    const Stage::Sizes sizes = kv_sizes(sequences, step);
    std::optional<StagePlan> best;
    for (const Sweep& sweep : sweeps(sequences, sizes.kv_disk_pages > 0)) {
      for (const bool head_streamed : {false, true}) {
        if (head_streamed && !layout_.range.is_last) continue;
        const auto plan = partly_on_disk(sequences, sizes, sweep, head_streamed);
        if (plan && (!best || plan->served_per_s > 1.002 * best->served_per_s)) best = plan;
      }
    }
    return best;
  }

  // A resident head takes part of the weights' memory whole; a streamed one is read evenly with the
  // layers, but where it is the embedding, too, its rows must be looked up on the disk.
  std::optional<StagePlan> partly_on_disk(int sequences, Stage::Sizes sizes, const Sweep& sweep,
                                          bool head_streamed) const {
    sizes.micro_batch_rows = sweep.micro_batch_rows;
    sizes.step_rows = sweep.step_rows;
    const uint64_t kv = kv_bytes(sizes);
    if (limits_.kv_memory > 0 && kv > std::max(limits_.kv_memory, page_)) return std::nullopt;
    sizes.logit_rows =
        workload_.sampled
            ? std::min<int64_t>(sequences, head_streamed ? kMostLogitRows : kLogitRows)
            : 1;
    StagePlan plan = start(sizes);
    const uint64_t fixed =
        plan.activations + vectors() + kv + kRounding * (layout_.units.size() + 2);
    if (fixed + smallest_placement(layout_, sweep.whole_layers) > limits_.host_memory) {
      return std::nullopt;
    }
    plan.placement = place_weights(layout_, limits_.host_memory - fixed,
                                   {sweep.ahead, sweep.whole_layers, !head_streamed});
    if (streams_head(plan) && !head_streamed) return std::nullopt;
    plan.kv = kv;
    plan.weights = resident_bytes(layout_, plan.placement) + vectors();
    plan.ring = ring_bytes(plan.placement);
    plan.streamed = streamed_bytes(layout_, plan.placement);
    if (!plan.placement.all_resident()) plan.disk += OffloadFile::file_bytes(layout_);
    if (sizes.kv_disk_pages > 0) {
      plan.disk += KvDisk::file_bytes(sizes.kv_disk_pages, sizes.slots,
                                      static_cast<size_t>(page_stride()), layout_.range.layers());
    }
    if (plan.disk > limits_.disk) return std::nullopt;
    predict(plan, sequences);
    return plan;
  }

  bool streams_head(const StagePlan& plan) const {
    return layout_.range.is_last && plan.placement.streamed[layout_.head_unit()] != 0;
  }

  Stage::Sizes kv_sizes(int sequences, int step) const {
    // Staging memory of a visit that lets the disk work well.
    constexpr int64_t kUsefulStaging = 4 << 20;
    Stage::Sizes sizes = sizes_;
    sizes.slots = sequences;
    const int64_t wanted = pages_wanted(sequences);
    sizes.kv_pages = wanted * step / kKvSteps;
    sizes.kv_disk_pages = wanted - sizes.kv_pages;
    if (sizes.kv_disk_pages > 0) {
      sizes.kv_staging_pages =
          std::min(wanted, std::max(longest_pages(), kUsefulStaging / page_stride()));
    }
    return sizes;
  }

  uint64_t kv_bytes(const Stage::Sizes& sizes) const {
    return Stage::kv_bytes(config_, layout_.range, sizes) + 2 * kRounding;
  }

  // Bytes of a page of a layer, on disk and in memory where a disk is used.
  int64_t page_stride() const {
    return static_cast<int64_t>(
        io_aligned(Stage::page_shape(config_, sizes_.kv_format).page_bytes()));
  }

  void predict(StagePlan& plan, int sequences) const {
    if (rates_.byte_s == 0) return;
    const double groups = std::min(workload_.groups, sequences);
    // Over a sequence's life three quarters of its pages are there on average where the prompt is
    // as long as the answer.
    const double pages = 0.75 * static_cast<double>(usual_pages(sequences));
    const double on_disk = std::max(0.0, pages - static_cast<double>(plan.sizes.kv_pages));
    const double page = static_cast<double>(page_);
    plan.compute_s = groups * rates_.compute_s(compute_bytes(), sequences / groups) +
                     pages * page * rates_.byte_s;
    if (rates_.disk > 0) {
      plan.disk_s = (groups * step_bytes(plan, sequences / groups) +
                     (plan.sizes.kv_disk_pages > 0 ? on_disk * page : 0.0)) /
                    rates_.disk;
      if (limits_.overlapped && plan.streamed > 0) {
        plan.disk_s += groups * disk_idles(plan, sequences / groups);
      }
    }
    plan.round_s = together(plan.compute_s, plan.disk_s);
    plan.tokens_per_s = sequences / plan.round_s;
    const double tokens = sequences * std::max(1.0, static_cast<double>(workload_.tokens) / 2);
    plan.served_per_s = sequences / (plan.round_s + sequences * prompt_token_s(plan, tokens));
  }

  double together(double compute_s, double disk_s) const {
    return limits_.overlapped ? std::max(compute_s, disk_s) : compute_s + disk_s;
  }

  // Seconds for a token of a prompt, where all prompts together have so many.
  double prompt_token_s(const StagePlan& plan, double tokens) const {
    const double rows = std::min(static_cast<double>(plan.sizes.step_rows), tokens);
    const double micro_rows = std::min(static_cast<double>(plan.sizes.micro_batch_rows), rows);
    const double compute_s = rows / micro_rows * rates_.compute_s(compute_bytes(), micro_rows);
    const double disk_s = rates_.disk > 0 ? step_bytes(plan, rows) / rates_.disk : 0;
    return together(compute_s, disk_s) / rows;
  }

  // Weights that a step of so many rows reads from disk.
  double step_bytes(const StagePlan& plan, double rows) const {
    return static_cast<double>(plan.streamed) +
           rows * lookup_bytes_per_row(layout_, plan.placement);
  }

  // Seconds of a step in which the disk has nothing to do: the ring is full, and what is resident
  // of a layer or the head is computed.
  double disk_idles(const StagePlan& plan, double rows) const {
    const double full_s = static_cast<double>(plan.placement.ring) / rates_.disk;
    double seconds = 0;
    const auto add = [&](uint64_t resident) {
      seconds += std::max(0.0, rates_.compute_s(resident, rows) - full_s);
    };
    for (size_t u = 0; u < layout_.units.size(); ++u) {
      const WeightUnit& unit = layout_.units[u];
      if (unit.kind == WeightUnit::Kind::kLayer) add(unit.image_bytes - plan.placement.streamed[u]);
    }
    if (layout_.range.is_last) {
      const size_t head = layout_.head_unit();
      add(layout_.units[head].matrices.front().bytes() - plan.placement.streamed[head]);
    }
    return seconds;
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

  Planner with(uint64_t host_memory, uint64_t disk) const {
    Planner other(*this);
    other.limits_.host_memory = host_memory;
    other.limits_.disk = disk;
    return other;
  }

  // For one sequence, with as little as it takes; nothing if that does not fit.
  std::optional<StagePlan> least() const {
    for (int step = kKvSteps; step >= 0; --step) {
      if (auto plan = partly_on_disk(1, step)) return plan;
    }
    return all_in_memory(1);
  }

  // The least budget in whole MiB, and what it would be used for.
  std::pair<uint64_t, StagePlan> smallest_budget() const {
    constexpr uint64_t kMiB = 1 << 20;
    uint64_t low = limits_.host_memory / kMiB, high = low + 1;  // too little; enough
    while (!with(high * kMiB, limits_.disk).least()) high *= 2;
    while (high - low > 1) {
      const uint64_t middle = (low + high) / 2;
      (with(middle * kMiB, limits_.disk).least() ? high : low) = middle;
    }
    return {high, *with(high * kMiB, limits_.disk).least()};
  }

  static std::string table(const char* what, const StagePlan& plan) {
    return std::string(what) + " is too small for this stage (" + describe(plan) +
           ")\n  weights      " + format_bytes(plan.weights + plan.ring) +
           (plan.placement.all_resident()
                ? std::string()
                : " of " + format_bytes(plan.all_weights) + ", the rest from disk") +
           "\n  activations  " + format_bytes(plan.activations) + "\n  KV cache     " +
           format_bytes(plan.kv) + " at least";
  }

  // The KV cache of one sequence where it takes least.
  uint64_t least_kv() const {
    const uint64_t memory = kv_bytes(kv_sizes(1, kKvSteps));
    return limits_.disk > 0 ? std::min(memory, kv_bytes(kv_sizes(1, 0))) : memory;
  }

  std::string refusal() const {
    if (limits_.kv_memory > 0) {
      Planner other(*this);
      other.limits_.kv_memory = 0;
      if (const auto fits = other.least()) {
        return table("--kv-memory", *fits) + "\n  budget       " + format_bytes(limits_.kv_memory) +
               "\ngive --kv-memory " + std::to_string((least_kv() >> 20) + 1) +
               "MiB or more, or leave it out";
      }
    }
    const auto [mebibytes, plan] = smallest_budget();
    const std::string larger =
        "--host-memory " + std::to_string(mebibytes) + "MiB where the machine has it";
    if (limits_.disk > 0) {
      if (const auto streamed = with(limits_.host_memory, UINT64_MAX).least()) {
        return table("the disk", *streamed) + "\n  disk         " + format_bytes(streamed->disk) +
               " needed, " + format_bytes(limits_.disk) +
               " there\ngive more --disk-budget, free space in --disk (headrace clean), use more "
               "ranks, or " +
               larger;
      }
    }
    return table("host memory", plan) + "\n  needed       " +
           format_bytes(plan.weights + plan.ring + plan.activations + plan.kv) +
           "\n  budget       " + format_bytes(limits_.host_memory) +
           "\nuse more ranks, a machine with more memory, or " + larger +
           (plan.needs_disk() ? "" : "; or let weights stream from a disk (--disk, --disk-budget)");
  }

  const ModelConfig& config_;
  const WeightLayout& layout_;
  Stage::Sizes sizes_;
  Workload workload_;
  PlanLimits limits_;
  Rates rates_;
  uint64_t page_;  // in all layers
};

std::string text_of(const char* format, double value) {
  char text[128];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// "0-14, embedding"
std::string layers_of(const StageRange& range) {
  return std::to_string(range.first_layer) + "-" + std::to_string(range.end_layer - 1) +
         (range.is_first ? ", embedding" : "") + (range.is_last ? ", head" : "");
}

}  // namespace

StagePlan plan_stage(const ModelConfig& config, const WeightLayout& layout,
                     const Stage::Sizes& sizes, const Workload& workload, const PlanLimits& limits,
                     const Rates& rates) {
  return Planner(config, layout, sizes, workload, limits, rates).best();
}

std::string describe(const StagePlan& plan) {
  std::string text =
      "layers " + layers_of(plan.range) + ": weights " + format_bytes(plan.all_weights);
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
  line("layers", layers_of(plan.range));
  line("weights",
       format_bytes(plan.all_weights) + ": " + format_bytes(plan.weights) + " in memory, " +
           format_bytes(plan.streamed) + " read from disk per step" +
           (plan.placement.embedding_streamed() ? ", rows of the embedding as needed" : ""));
  if (plan.ring > 0) line("ring", format_bytes(plan.ring) + " for weights on their way");
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
