#include "runtime/plan/device_plan.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <optional>
#include <string>

#include "comm/device_wire.h"
#include "engine/error.h"
#include "engine/memory/offload_file.h"
#include "runtime/plan/device_prediction.h"
#include "runtime/plan/stage_plan.h"

namespace headrace {
namespace {

constexpr uint64_t kRounding = 4096;        // of each buffer
constexpr uint64_t kLibraries = 640 << 20;  // of device memory: cuBLASLt and where it is tried out
constexpr uint64_t kOnTheWay = 96 << 20;    // of host memory, while weights are brought over
constexpr uint64_t kReadAhead = 256 << 20;  // of a ring, where there is room
constexpr int64_t kLeastRows = 512;         // of a step, where the user wants as many
constexpr int kSlots = 3, kLeastSlots = 2;  // for layers that pass through the device
constexpr int kTogether = 3;                // that a layer begins with: queries, keys, values
constexpr uint64_t kWindow = 512 << 20;     // for KV pages that come from the host
// Tokens per second over those of another plan from which on it is better; and where hidden states
// pass and products have fewer rows, which is not in the prediction.
constexpr double kWorthIt = 1.01, kWorthPassing = 1.03;
constexpr int64_t kPlaces = 4;  // for micro-batches whose hidden states pass through the device
constexpr int kShares = 64;     // what the CPU attends to, in steps
constexpr int kKvSteps = 8;     // shares of the KV pages beyond the device that are tried on disk

class DevicePlanner {
 public:
  DevicePlanner(const ModelConfig& config, const WeightLayout& layout, const Stage::Sizes& sizes,
                const Workload& workload, const PlanLimits& limits, const DeviceLimits& device,
                const Rates& rates)
      : config_(config),
        layout_(layout),
        sizes_(sizes),
        workload_(workload),
        limits_(limits),
        device_(device),
        rates_(rates),
        page_(KvStore::bytes_per_page(Stage::page_shape(config, sizes.kv_format),
                                      layout.range.layers())) {}

  StagePlan best() const {
    std::optional<StagePlan> best;
    for (int b = workload_.sequences; b >= 1; b /= 2) {
      const std::optional<StagePlan> plan = for_sequences(b);
      if (!plan) continue;
      if (!best || serves_more(*plan, *best)) best = plan;
      if (workload_.exact || is_all_there(*plan)) break;
    }
    if (!best) throw DoesNotFit(refusal());
    give_rest_to_kv(*best);
    return *best;
  }

 private:
  bool serves_more(const StagePlan& plan, const StagePlan& than, double by = kWorthIt) const {
    const double enough = workload_.enough_per_s;
    return std::min(plan.served_per_s, enough) > by * std::min(than.served_per_s, enough);
  }

  static bool is_all_there(const StagePlan& plan) {
    return plan.device->streamed == 0 && !plan.needs_disk();
  }

  bool is_head(size_t unit) const { return layout_.range.is_last && layout_.head_unit() == unit; }

  uint64_t bytes(const DeviceStage::Sizes& sizes) const {
    // Where pages may go to disk those that pass may be padded.
    const bool may_pad = limits_.disk > 0 && sizes.kv_host_pages > 0 && sizes.kv_disk_pages == 0;
    const uint64_t padding =
        may_pad ? static_cast<uint64_t>(sizes.kv_window) * (io_aligned(stride()) - stride()) : 0;
    return DeviceStage::bytes_needed(config_, layout_, sizes) + padding + kLibraries +
           static_cast<uint64_t>(device_.wires) * kWireBytes;
  }

  // Bytes of a page of a layer.
  uint64_t stride() const { return page_ / static_cast<uint64_t>(layout_.range.layers()); }

  // With nothing resident.
  DeviceStage::Sizes start(int sequences) const {
    DeviceStage::Sizes sizes;
    sizes.half = device_.half;
    sizes.kv_format = sizes_.kv_format;
    sizes.host_share = device_.most_host_share;
    sizes.kv_pages = pages_wanted(config_, workload_, sequences);
    sizes.micro_batch_rows = sizes_.micro_batch_rows;
    sizes.step_rows = std::max(sizes_.step_rows, workload_.wanted_step_rows);
    if (device_.wires > 0) sizes.link_buffers = link_buffers(layout_.range);
    sizes.logit_rows = workload_.sampled ? std::min(16, sequences) : 1;
    sizes.slots = sequences;
    sizes.weights.half_rows = device_.half;
    sizes.weights.passing.assign(layout_.units.size(), DevicePlacement::kAll);
    return sizes;
  }

  // With fewer slots less is copied ahead, but there is more room.
  std::optional<StagePlan> for_sequences(int sequences) const {
    std::optional<StagePlan> best;
    for (int slots = kSlots; slots >= kLeastSlots; --slots) {
      const std::optional<StagePlan> plan = with_slots(slots, sequences);
      if (plan && (!best || serves_more(*plan, *best))) best = plan;
      if (best && is_all_there(*best)) break;
    }
    return best;
  }

  // Fewer rows in a step leave more room for weights and KV pages, but all weights that pass
  // through come over for each of the steps that prompts take; for a slow link or a disk it takes
  // longer steps than usual.
  std::optional<StagePlan> with_slots(int slots, int sequences) const {
    std::optional<StagePlan> best;
    const auto consider = [&](const DeviceStage::Sizes& sizes, double by = kWorthIt) {
      const std::optional<StagePlan> plan = with_rows(sizes, sequences);
      if (plan && (!best || serves_more(*plan, *best, by))) best = plan;
      return plan && is_all_there(*plan);
    };
    DeviceStage::Sizes sizes = start(sequences);
    sizes.weights.slots = slots;
    for (DeviceStage::Sizes stay = sizes;; halve_rows(stay)) {
      if (consider(stay)) return best;
      if (stay.step_rows <= kLeastRows) break;
    }
    if (best && best->device->streamed == 0) return best;
    const int64_t usual = sizes.step_rows, longest = longest_step(sequences);
    for (sizes.step_rows = longest; sizes.step_rows > usual; sizes.step_rows /= 2) consider(sizes);
    // On a wire hidden states are on the device.
    if (device_.wires > 0) return best;
    for (; sizes.micro_batch_rows >= kLeastRows; sizes.micro_batch_rows /= 2) {
      sizes.hidden_rows = std::max<int64_t>(sequences, kPlaces * sizes.micro_batch_rows);
      for (sizes.step_rows = longest; sizes.step_rows > sizes.hidden_rows; sizes.step_rows /= 2) {
        consider(sizes, kWorthPassing);
      }
    }
    return best;
  }

  static void halve_rows(DeviceStage::Sizes& sizes) {
    sizes.step_rows /= 2;
    sizes.micro_batch_rows = std::min(sizes.micro_batch_rows, sizes.step_rows);
  }

  // All prompts of a group, as far as they go in one step.
  int64_t longest_step(int sequences) const {
    const auto rows = workload_.group_of(sequences) *
                      std::min(std::max<int64_t>(1, workload_.prompt), workload_.chunk);
    // MPI counts the bytes of a message in an int.
    const int64_t most = workload_.groups > 1
                             ? INT_MAX / (config_.d_model * static_cast<int64_t>(sizeof(float)))
                             : INT64_MAX;
    return std::max({sizes_.step_rows, workload_.wanted_step_rows, std::min(rows, most)});
  }

  std::optional<StagePlan> with_rows(DeviceStage::Sizes sizes, int sequences) const {
    const bool has_room = bytes(smallest(sizes)) <= device_.memory || fits(all_there(sizes));
    if (has_room && sizes.kv_pages <= pages_allowed()) {
      return with_host(with_residents(sizes), sequences);
    }
    // Where a disk is used, what is large for the device takes as much of the host.
    std::optional<StagePlan> best;
    for (const int64_t window : {window_pages(sizes, kWindow), window_pages(sizes, 0)}) {
      sizes.kv_window = window;
      if (!move_kv(sizes)) continue;
      const std::optional<StagePlan> plan = with_host(with_residents(sizes), sequences);
      if (plan && (!best || serves_more(*plan, *best))) best = plan;
      if (plan && !plan->needs_disk()) break;
    }
    return best;
  }

  int64_t pages_allowed() const { return static_cast<int64_t>(device_.kv / page_); }

  // Pages of a layer in so many bytes, but room for the longest sequence.
  int64_t window_pages(const DeviceStage::Sizes& sizes, uint64_t bytes) const {
    const int64_t longest =
        KvStore::pages_for(std::min<int64_t>(workload_.longest, config_.max_positions));
    return std::min(sizes.kv_pages, std::max(longest, static_cast<int64_t>(bytes / stride())));
  }

  // KV pages that have no room go to the host; false if even the rest has none.
  bool move_kv(DeviceStage::Sizes& sizes) const {
    const int64_t all = sizes.kv_pages;
    sizes.kv_host_pages = all;
    const uint64_t rest = bytes(smallest(sizes));
    if (rest > device_.memory) return false;
    const auto room = static_cast<int64_t>((device_.memory - rest) / page_);
    sizes.kv_host_pages = all - std::min({all, pages_allowed(), room});
    return true;
  }

  // Beside slots of a few layers parts of all of them may take less than slots for whole ones.
  DeviceStage::Sizes smallest(const DeviceStage::Sizes& sizes) const {
    const DeviceStage::Sizes parts = with_layers(sizes, 0, kTogether);
    return bytes(parts) < bytes(sizes) && is_allowed(parts) ? parts : sizes;
  }

  DeviceStage::Sizes all_there(DeviceStage::Sizes sizes) const {
    sizes.weights.slots = 0;
    for (size_t u = 0; u < layout_.units.size(); ++u) {
      if (layout_.units[u].kind == WeightUnit::Kind::kLayer || is_head(u) || device_.half) {
        sizes.weights.passing[u] = 0;
      }
    }
    return sizes;
  }

  // The head and what fits of the layers. A stage that is all there needs no slots.
  DeviceStage::Sizes with_residents(DeviceStage::Sizes sizes) const {
    DeviceStage::Sizes all = all_there(sizes);
    if (fits(all)) return all;
    if (layout_.range.is_first && !is_head(0)) {  // the host can look tokens up, too
      all.weights.passing[0] = DevicePlacement::kAll;
      if (fits(all)) return all;
    }
    if (layout_.range.is_last) {
      DeviceStage::Sizes head = sizes;
      head.weights.passing[layout_.head_unit()] = 0;
      if (fits(head)) sizes = head;
    }
    // Of a layer its last matrices stay, so that slots are smaller, and of some all. Queries, keys
    // and values go together: they are one product.
    const auto matrices = static_cast<int>(
        layout_.units[layout_.layer_unit(layout_.range.first_layer)].matrices.size());
    DeviceStage::Sizes best = sizes;
    const auto passing = [&](const DeviceStage::Sizes& s) {
      return DeviceWeights::passing_bytes(layout_, s.weights);
    };
    for (int some = matrices; some >= kTogether; --some) {
      DeviceStage::Sizes with = with_layers(sizes, 0, some);
      if (!fits(with)) continue;
      int whole = 0, too_many = layout_.range.layers();
      while (too_many - whole > 1) {
        const int middle = (whole + too_many) / 2;
        (fits(with_layers(sizes, middle, some)) ? whole : too_many) = middle;
      }
      with = with_layers(sizes, whole, some);
      if (passing(with) < passing(best)) best = with;
    }
    return best;
  }

  // So many layers stay, spread evenly over the sweep; of the others the first matrices pass.
  DeviceStage::Sizes with_layers(DeviceStage::Sizes sizes, int whole, int passing) const {
    const int layers = layout_.range.layers();
    for (int l = 0; l < layers; ++l) {
      const bool stays = (l + 1) * whole / layers > l * whole / layers;
      sizes.weights.passing[layout_.layer_unit(layout_.range.first_layer + l)] =
          stays ? 0 : passing;
    }
    return sizes;
  }

  bool fits(const DeviceStage::Sizes& sizes) const {
    return bytes(sizes) <= device_.memory && is_allowed(sizes);
  }

  bool is_allowed(const DeviceStage::Sizes& sizes) const {
    return DeviceWeights::resident_bytes(layout_, sizes.weights) <= device_.weights;
  }

  // KV pages that the host has no room for go to disk, and more where weights come from disk if
  // that is faster.
  std::optional<StagePlan> with_host(const DeviceStage::Sizes& sizes, int sequences) const {
    const int64_t all = limits_.disk > 0 ? sizes.kv_host_pages : 0;
    std::optional<StagePlan> best;
    for (int step = 0; step <= (all > 0 ? kKvSteps : 0); ++step) {
      const std::optional<StagePlan> plan = with_disk(sizes, all * step / kKvSteps, sequences);
      if (plan && (!best || serves_more(*plan, *best))) best = plan;
      if (plan && plan->placement.all_resident()) break;
    }
    if (!best) return best;
    const StagePlan found = *best;
    for (int64_t part = all / kKvSteps; part > 0; part /= 2) {
      const int64_t on_disk = best->device->sizes.kv_disk_pages;
      const std::optional<StagePlan> plan =
          on_disk >= part ? with_disk(sizes, on_disk - part, sequences) : std::nullopt;
      if (plan && !serves_more(found, *plan)) best = plan;
    }
    return best;
  }

  std::optional<StagePlan> with_disk(DeviceStage::Sizes sizes, int64_t disk_pages,
                                     int sequences) const {
    sizes.kv_host_pages -= disk_pages;
    sizes.kv_disk_pages = disk_pages;
    StagePlan plan;
    plan.range = layout_.range;
    plan.sizes = sizes_;
    plan.sizes.slots = std::min(sizes_.slots, sequences);
    plan.sizes.kv_pages = sizes.kv_pages;
    plan.sizes.step_rows = sizes.step_rows;
    plan.sizes.micro_batch_rows = sizes.micro_batch_rows;
    plan.sizes.logit_rows = sizes.logit_rows;
    plan.device = DevicePlan{sizes};
    DevicePlan& device = *plan.device;
    device.weights = DeviceWeights::resident_bytes(layout_, sizes.weights);
    device.kv = page_ * static_cast<uint64_t>(sizes.kv_device_pages());
    plan.kv = DeviceStage::host_kv_bytes(config_, layout_.range, sizes);
    if (limits_.kv_memory > 0 && plan.kv > limits_.kv_memory) return std::nullopt;
    device.all = bytes(sizes);
    device.limit = device_.memory;
    plan.disk = DeviceStage::disk_kv_bytes(config_, layout_.range, sizes);

    const uint64_t vectors = WeightStore::vector_bytes(layout_) + kRounding;
    const auto buffers = static_cast<uint64_t>(link_buffers(layout_.range));
    plan.host_hidden_rows = DeviceStage::host_hidden_rows(layout_, sizes);
    const uint64_t hidden = link_buffer_bytes(config_, plan.host_hidden_rows) + kRounding;
    const uint64_t block = static_cast<uint64_t>(std::max(config_.d_model, config_.d_embed)) *
                           static_cast<uint64_t>(sizes.micro_batch_rows) * sizeof(float);
    plan.activations = buffers * hidden + block + kRounding +
                       DeviceStage::host_rows_bytes(config_, sizes) +
                       DeviceStage::host_staging_bytes(config_, layout_.range, sizes) + kRounding;
    plan.other = limits_.other;
    plan.all_weights = layout_.image_bytes() + vectors;
    std::vector<uint64_t> ends;
    for (size_t u = 0; u < layout_.units.size(); ++u) {
      ends.push_back(DeviceWeights::host_end(layout_, sizes.weights, u));
    }
    const WeightLayout rest = up_to(layout_, ends);
    const uint64_t fixed = vectors + plan.activations + plan.other + plan.kv + kOnTheWay +
                           kRounding * (layout_.units.size() + 2);
    plan.placement.streamed.assign(layout_.units.size(), 0);
    if (fixed + rest.image_bytes() > limits_.host_memory) {
      if (fixed + smallest_placement(rest, false) > limits_.host_memory) return std::nullopt;
      plan.placement = place_weights(rest, limits_.host_memory - fixed, {kReadAhead, false, true});
      plan.disk += OffloadFile::file_bytes(layout_);
    }
    if (plan.disk > limits_.disk) return std::nullopt;
    plan.placement.ends = ends;
    plan.weights = headrace::resident_bytes(rest, plan.placement) + vectors;
    plan.ring = ring_bytes(plan.placement);
    plan.streamed = streamed_bytes(layout_, plan.placement);
    device.streamed = DeviceWeights::passing_bytes(layout_, sizes.weights);
    share_attention(plan, sequences);
    return plan;
  }

  // The CPU attends to as many pages as makes a round shortest, by a percent at least.
  void share_attention(StagePlan& plan, int sequences) const {
    DeviceStage::Sizes& sizes = plan.device->sizes;
    const bool has_pages = sizes.kv_host_pages > 0;
    const double least = has_pages ? device_.least_host_share : 0,
                 most = has_pages && rates_.attention_s > 0 ? device_.most_host_share : least;
    std::optional<StagePlan> best;
    for (int i = 0; i <= (most > least ? kShares : 0); ++i) {
      sizes.host_share = std::lerp(least, most, static_cast<double>(i) / kShares);
      predict_on_device(config_, layout_, workload_, rates_, sequences, plan);
      if (!best || plan.round_s < 0.99 * best->round_s) best = plan;
    }
    plan = *best;
  }

  // Longer sequences than usual find room there. Their page tables take some of the host's memory.
  void give_rest_to_kv(StagePlan& plan) const {
    DeviceStage::Sizes sizes = plan.device->sizes;
    if (sizes.has_passing_pages()) return;
    const int64_t useful = plan.sizes.slots * KvStore::pages_for(config_.max_positions);
    const uint64_t each = page_ + sizeof(std::byte*);
    const auto room = static_cast<int64_t>((device_.memory - plan.device->all) / each);
    for (int64_t more = std::min({room, useful - sizes.kv_pages, pages_allowed() - sizes.kv_pages});
         more > 0; more /= 2) {
      sizes.kv_pages = plan.device->sizes.kv_pages + more;
      const std::optional<StagePlan> with =
          fits(sizes) ? with_disk(sizes, 0, sizes.slots) : std::nullopt;
      if (!with || (with->needs_disk() && !plan.needs_disk())) continue;
      plan = *with;
      return;
    }
  }

  std::string refusal() const {
    const int sequences = workload_.exact ? workload_.sequences : 1;
    DeviceStage::Sizes least = start(sequences);
    least.weights.slots = kLeastSlots;
    least.kv_host_pages = least.kv_pages;
    least.kv_window = window_pages(least, 0);
    while (least.step_rows > kLeastRows) halve_rows(least);
    least = smallest(least);
    const std::string table =
        "\n  weights      " + format_bytes(DeviceWeights::bytes_needed(layout_, least.weights)) +
        " at least, with " + std::to_string(kLeastSlots) + " layers on their way" +
        "\n  needed       " + format_bytes(bytes(least)) + "\n  budget       " +
        format_bytes(device_.memory);
    if (bytes(least) > device_.memory) {
      return "device memory is too small for this stage" + table +
             "\ngive more --device-memory, a smaller --max-batch, more ranks, or --device cpu";
    }
    uint64_t kv = DeviceStage::host_kv_bytes(config_, layout_.range, least);
    std::swap(least.kv_host_pages, least.kv_disk_pages);
    if (limits_.disk > 0) {
      kv = std::min(kv, DeviceStage::host_kv_bytes(config_, layout_.range, least));
    }
    if (limits_.kv_memory > 0 && kv > limits_.kv_memory) {
      return "the KV cache's memory is too small for pages that do not stay on the device"
             "\n  needed       " +
             format_bytes(kv) + "\n  budget       " + format_bytes(limits_.kv_memory) +
             "\ngive more --kv-memory, or --device-memory";
    }
    const uint64_t disk = OffloadFile::file_bytes(layout_) +
                          DeviceStage::disk_kv_bytes(config_, layout_.range, least);
    return "host memory is too small for what does not stay on the device: weights of " +
           format_bytes(layout_.image_bytes()) + ", KV pages and activations" +
           "\n  budget       " + format_bytes(limits_.host_memory) +
           "\ngive more --host-memory, --device-memory, ranks" +
           (limits_.disk < disk ? ", or a --disk with " + format_bytes(disk) : "");
  }

  const ModelConfig& config_;
  const WeightLayout& layout_;
  Stage::Sizes sizes_;
  Workload workload_;
  PlanLimits limits_;
  DeviceLimits device_;
  Rates rates_;
  uint64_t page_;  // in all layers
};

}  // namespace

StagePlan plan_device_stage(const ModelConfig& config, const WeightLayout& layout,
                            const Stage::Sizes& sizes, const Workload& workload,
                            const PlanLimits& limits, const DeviceLimits& device,
                            const Rates& rates) {
  return DevicePlanner(config, layout, sizes, workload, limits, device, rates).best();
}

}  // namespace headrace
