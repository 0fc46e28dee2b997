#include "runtime/plan/memory_plan.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/memory/offload_file.h"
#include "runtime/plan/plan_text.h"
#include "runtime/plan/prediction.h"
#include "runtime/plan/stage_plan.h"

namespace headrace {
namespace {

constexpr uint64_t kRounding = 4096;  // of each buffer
// Read ahead: what a fast disk brings while the matrices of an attention are computed, or more.
constexpr uint64_t kReadAheads[] = {4 << 20, 8 << 20, 24 << 20};
constexpr int64_t kLogitRows = 16;
constexpr int64_t kMostLogitRows = 128;  // where a head on disk is read once for so many
constexpr int64_t kLeastRows = 32;       // of a step
constexpr int64_t kUsefulMicroRows = 128;
constexpr int kKvSteps = 8;  // shares of the KV cache in memory that are tried
// Where memory is scarce, a step has fewer rows and less of the KV cache is read ahead: half of it
// with each degree of thrift.
constexpr int kMostThrift = 4;

int64_t pages_of(const ModelConfig& config, int64_t tokens) {
  return KvStore::pages_for(std::clamp<int64_t>(tokens, 1, config.max_positions));
}

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
    std::optional<StagePlan> best = best_with_disk();
    const bool serves_all = resident && resident->kv_pages() >= longest_pages();
    if (best && serves_all && !workload_.exact && !faster(*best, *resident)) best = resident;
    if (best) return *best;
    if (resident && (serves_all || !kv_limit_is_too_small())) return *resident;
    throw DoesNotFit(refusal());
  }

 private:
  // Without it the longest sequence would have room.
  bool kv_limit_is_too_small() const {
    return limits_.kv_memory > 0 && limits_.disk > 0 && without_kv_limit().least();
  }

  bool faster(const StagePlan& plan, const StagePlan& than) const {
    // Less memory than a panel per layer buys less than a prediction can tell.
    const bool buys_nothing = plan.sizes.slots == than.sizes.slots &&
                              plan.sizes.kv_disk_pages > than.sizes.kv_disk_pages &&
                              plan.kv + panel_of_each_layer() > than.kv;
    return !buys_nothing && plan.served_per_s > 1.01 * than.served_per_s;
  }

  uint64_t panel_of_each_layer() const {
    uint64_t bytes = 0;
    for (const WeightUnit& unit : layout_.units) {
      uint64_t most = 0;
      for (const PlacedMatrix& matrix : unit.matrices) most = std::max(most, matrix.panel_bytes);
      if (unit.kind == WeightUnit::Kind::kLayer) bytes += most;
    }
    return bytes;
  }

  // The least thrift with which all the sequences that are wanted fit; more of it where fewer do,
  // if that brings more of those wanted, or more speed.
  std::optional<StagePlan> best_with_disk() const {
    std::optional<StagePlan> best;
    for (int thrift = 0; thrift <= kMostThrift; ++thrift) {
      const std::optional<StagePlan> plan = with_thrift(thrift).best_of_shares();
      const auto better = [&] {
        const bool more = plan->sizes.slots > best->sizes.slots;
        return workload_.exact ? more : faster(*plan, *best);
      };
      if (plan && (!best || better())) best = plan;
      if (best && best->sizes.slots == workload_.sequences) break;
    }
    return best;
  }

  std::optional<StagePlan> best_of_shares() const {
    std::optional<StagePlan> best;
    for (int b = workload_.sequences; b >= 1; b /= 2) {
      for (int step = kKvSteps; step >= 0; --step) {
        std::optional<StagePlan> plan = partly_on_disk(b, step);
        // Of equals, the one that has more sequences and more of its KV cache in memory.
        if (plan && (!best || faster(*plan, *best))) best = plan;
      }
      if (best && workload_.exact) break;
    }
    return best;
  }

  int64_t usual_pages(int sequences) const {
    return headrace::usual_pages(config_, workload_, sequences);
  }

  int64_t longest_pages() const { return pages_of(config_, workload_.longest); }

  int64_t pages_wanted(int sequences) const {
    return headrace::pages_wanted(config_, workload_, sequences);
  }

  uint64_t activations(const Stage::Sizes& sizes) const {
    const auto buffers = static_cast<uint64_t>(link_buffers(layout_.range));
    return Stage::fixed_bytes(config_, layout_.range, sizes) +
           buffers * link_buffer_bytes(config_, sizes.step_rows) +
           kRounding * (buffers + 2 + sizes.int8);
  }

  // Norms and biases, which are always in memory.
  uint64_t vectors() const { return WeightStore::vector_bytes(layout_) + kRounding; }

  StagePlan start(const Stage::Sizes& sizes) const {
    StagePlan plan;
    plan.range = layout_.range;
    plan.sizes = sizes;
    plan.activations = activations(sizes);
    plan.host_hidden_rows = sizes.step_rows;
    plan.other = limits_.other;
    plan.all_weights = layout_.image_bytes() + vectors();
    plan.placement.streamed.assign(layout_.units.size(), 0);
    return plan;
  }

  std::optional<StagePlan> all_in_memory(int64_t useful) const {
    StagePlan plan = start(sizes_);
    plan.weights = plan.all_weights;
    const uint64_t fixed = plan.weights + plan.activations + plan.other + kRounding;
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

  // How a stage that does not keep everything in memory goes through a step.
  struct Sweep {
    int64_t micro_batch_rows;
    int64_t step_rows;
    // A step is several micro-batches, or one, to which the weights are gone once it has used them.
    bool whole_layers;
    uint64_t ahead;
  };

  // The larger a step the fewer the passes over the weights for prompts, the smaller its buffers
  // the fewer bytes in each pass.
  std::vector<Sweep> sweeps(int sequences) const {
    std::vector<Sweep> all;
    const int64_t most =
        std::max(std::min(sizes_.step_rows, kLeastRows), sizes_.step_rows >> thrift_);
    const int64_t least =
        std::max({std::min(most, workload_.least_step_rows), std::min(most, kLeastRows),
                  std::min<int64_t>(most, (sequences - 1) / workload_.groups + 1)});
    for (const uint64_t ahead : kReadAheads) {
      for (int64_t power = least; power < 2 * most; power *= 2) {
        const int64_t rows = std::min(power, most);
        if (rows > kUsefulMicroRows) all.push_back({kUsefulMicroRows, rows, true, ahead});
        all.push_back({rows, rows, false, ahead});
      }
    }
    return all;
  }

  // `step` eighths of the KV cache of `sequences` sequences in memory.
  std::optional<StagePlan> partly_on_disk(int sequences, int step) const {
    if (limits_.disk == 0) return std::nullopt;
    std::optional<StagePlan> best;
    for (const Sweep& sweep : sweeps(sequences)) {
      const Stage::Sizes sizes = kv_sizes(sequences, step, sweep);
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
    const uint64_t kv = kv_bytes(sizes);
    if (kv > most_kv()) return std::nullopt;
    sizes.logit_rows =
        workload_.sampled
            ? std::min<int64_t>(sequences, head_streamed ? kMostLogitRows : kLogitRows)
            : 1;
    StagePlan plan = start(sizes);
    const uint64_t fixed =
        plan.activations + plan.other + vectors() + kv + kRounding * (layout_.units.size() + 2);
    if (fixed + smallest_placement(layout_, sweep.whole_layers) > limits_.host_memory) {
      return std::nullopt;
    }
    plan.placement = place_weights(layout_, limits_.host_memory - fixed,
                                   {sweep.ahead, sweep.whole_layers, !head_streamed});
    if (streams_head(layout_, plan) && !head_streamed) return std::nullopt;
    plan.kv = kv;
    plan.weights = resident_bytes(layout_, plan.placement) + vectors();
    plan.ring = ring_bytes(plan.placement);
    plan.streamed = streamed_bytes(layout_, plan.placement);
    if (!plan.placement.all_resident()) plan.disk += OffloadFile::file_bytes(layout_);
    if (sizes.kv_disk_pages > 0) {
      plan.disk += KvDisk::file_bytes(sizes.kv_disk_pages, sizes.slots, page_stride(),
                                      layout_.range.layers());
    }
    if (plan.disk > limits_.disk) return std::nullopt;
    predict(plan, sequences);
    return plan;
  }

  Stage::Sizes kv_sizes(int sequences, int step, const Sweep& sweep) const {
    Stage::Sizes sizes = sizes_;
    sizes.slots = sequences;
    sizes.step_rows = sweep.step_rows;
    sizes.micro_batch_rows = sweep.micro_batch_rows;
    const int64_t wanted = pages_wanted(sequences), in_memory = wanted * step / kKvSteps;
    if (in_memory == wanted) {
      sizes.kv_pages = wanted;
      if (kv_bytes(sizes) <= most_kv()) return sizes;
    }
    // What the limit leaves beside the memory that pages pass through.
    sizes.kv_pages = 0;
    sizes.kv_disk_pages = wanted;
    sizes.kv_staging_pages = staging_pages(sequences);
    const uint64_t passing = kv_bytes(sizes);
    if (passing > most_kv()) return sizes;
    const uint64_t page = page_stride() * static_cast<uint64_t>(layout_.range.layers());
    const auto room = static_cast<int64_t>((most_kv() - passing) / page);
    sizes.kv_pages = std::min({in_memory, room, wanted - 1});
    sizes.kv_disk_pages = wanted - sizes.kv_pages;
    return sizes;
  }

  uint64_t most_kv() const {
    return limits_.kv_memory > 0 ? std::max(limits_.kv_memory, page_) : limits_.host_memory;
  }

  // Pages of a layer that are read ahead: what the disk brings while the matrices of a layer are
  // computed, and at least what the longest sequence has.
  int64_t staging_pages(int sequences) const {
    constexpr double kUsefulStaging = 4 << 20;
    const double groups = std::min(workload_.groups, sequences);
    const double meanwhile = rates_.kv_rate() * layer_s(layout_, rates_, sequences / groups);
    const auto bytes = static_cast<int64_t>(
        std::min(std::max(kUsefulStaging, meanwhile), static_cast<double>(most_kv() / 8)));
    const int64_t useful = (bytes >> thrift_) / static_cast<int64_t>(page_stride());
    return std::min(pages_wanted(sequences), std::max(longest_pages(), useful));
  }

  uint64_t kv_bytes(const Stage::Sizes& sizes) const {
    return Stage::kv_bytes(config_, layout_.range, sizes) + 2 * kRounding;
  }

  // Bytes of a page of a layer, on disk and in memory where a disk is used.
  uint64_t page_stride() const {
    return io_aligned(Stage::page_shape(config_, sizes_.kv_format).page_bytes());
  }

  void predict(StagePlan& plan, int sequences) const {
    headrace::predict(layout_, rates_,
                      {sequences, workload_.groups, usual_pages(sequences), workload_.tokens,
                       workload_.prompt, page_stride(), limits_.overlapped},
                      plan);
  }

  Planner with(uint64_t host_memory, uint64_t disk) const {
    Planner other(*this);
    other.limits_.host_memory = host_memory;
    other.limits_.disk = disk;
    return other;
  }

  Planner without_kv_limit() const {
    Planner other(*this);
    other.limits_.kv_memory = 0;
    return other;
  }

  Planner with_thrift(int thrift) const {
    Planner other(*this);
    other.thrift_ = thrift;
    return other;
  }

  // For one sequence, with as little as it takes; nothing if that does not fit.
  std::optional<StagePlan> least() const {
    const Planner thrifty = with_thrift(kMostThrift);
    for (int step = kKvSteps; step >= 0; --step) {
      if (auto plan = thrifty.partly_on_disk(1, step)) return plan;
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
           "\n  activations  " + format_bytes(plan.activations) +
           (plan.other > 0 ? "\n  other        " + format_bytes(plan.other) : std::string()) +
           "\n  KV cache     " + format_bytes(plan.kv) + " at least";
  }

  // The KV cache of one sequence where it takes least.
  uint64_t least_kv() const {
    const Planner thrifty = without_kv_limit().with_thrift(kMostThrift);
    const Sweep sweep = thrifty.sweeps(1).front();
    const uint64_t memory = kv_bytes(thrifty.kv_sizes(1, kKvSteps, sweep));
    return limits_.disk > 0 ? std::min(memory, kv_bytes(thrifty.kv_sizes(1, 0, sweep))) : memory;
  }

  std::string refusal() const {
    if (limits_.kv_memory > 0) {
      if (const auto fits = without_kv_limit().least()) {
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
           format_bytes(plan.weights + plan.ring + plan.activations + plan.other + plan.kv) +
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
  int thrift_ = 0;
};

}  // namespace

int64_t usual_pages(const ModelConfig& config, const Workload& workload, int sequences) {
  return sequences * pages_of(config, workload.tokens);
}

int64_t pages_wanted(const ModelConfig& config, const Workload& workload, int sequences) {
  return usual_pages(config, workload, sequences - 1) +
         std::max(pages_of(config, workload.tokens), pages_of(config, workload.longest));
}

StagePlan plan_stage(const ModelConfig& config, const WeightLayout& layout,
                     const Stage::Sizes& sizes, const Workload& workload, const PlanLimits& limits,
                     const Rates& rates) {
  return Planner(config, layout, sizes, workload, limits, rates).best();
}

}  // namespace headrace
