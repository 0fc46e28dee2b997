// What a rank gets: its measurements, its plan, and what all ranks make of them together.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <future>
#include <utility>

#include "engine/io/directory.h"
#include "headrace/version.h"
#include "runtime/error.h"
#include "runtime/json_bytes.h"
#include "runtime/rank.h"

namespace headrace {
namespace {

// Prefixes of sequences that have ended, at most.
constexpr int kKeptSlots = 64;
// Page tables and tokens of sequences that share pages, and again of those that are kept, where the
// KV cache has fewer pages. Not counted in the budget.
constexpr int64_t kTableBytes = 16 << 20;
// More than all cores of a machine with a GPU have caches.
constexpr uint64_t kManyPages = 1 << 30;
// Times the slowest rank's speed, as planned, that another one keeps if it makes its steps longer.
constexpr double kFaster = 2;

std::string schedule_text(const RunOptions& options) {
  std::string text = "max-batch " + std::to_string(options.max_batch) + ", prefill-chunk " +
                     std::to_string(options.prefill_chunk) + ", split";
  for (const int layers : options.split) text += " " + std::to_string(layers);
  if (!options.trace.empty()) text += ", traced";
  if (!options.share_prefixes) text += ", no shared prefixes";
  return text;
}

}  // namespace

void Rank::measure_computing() {
  const Communicator::Idle measuring(wires_.communicator);  // takes as long as others slow it down
  const Cpu cpu{threads_, kernels_};
  measure_compute(*checkpoint_, layout_, cpu, options_.int8(), budget_, rates_);
  measure_attention(checkpoint_->config(), options_.kv_format, cpu, budget_, rates_);
}

void Rank::measure_host_attention() {
  const Communicator::Idle measuring(wires_.communicator);
  const Cpu cpu{threads_, kernels_};
  measure_attention(checkpoint_->config(), options_.kv_format, cpu, budget_, rates_, kManyPages);
  rates_.host_memory = measure_shared_memory();
}

// What cores and link read together, for both do in a run.
double Rank::measure_shared_memory() {
  std::atomic<bool> stop = false;
  std::future<double> copying;
  struct Stop {
    std::atomic<bool>& stop;
    ~Stop() { stop = true; }
  };
  const Stop whatever_happens{stop};  // before the future waits for its end
  const double cores = measure_memory(threads_, budget_, kManyPages, [&] {
    copying = std::async(std::launch::async, [&] {
      return device_choice_.module->copy_until(device_choice_.number, stop);
    });
  });
  stop = true;
  return cores > 0 ? cores + copying.get() : 0;
}

PlanLimits Rank::plan_limits() const {
  PlanLimits limits;
  limits.host_memory = budget_.limit();
  limits.other = other_.sum();
  limits.kv_memory = options_.kv_memory;
  limits.disk = disk_room_;
  limits.overlapped = !options_.serial;
  return limits;
}

StagePlan Rank::make_device_plan(const Workload& workload, bool build) {
  const auto make = [&] {
    return plan_device_stage(checkpoint_->config(), layout_, stage_sizes(), workload, plan_limits(),
                             device_limits_, rates_);
  };
  StagePlan plan = make();
  const bool has_host_pages = plan.device->sizes.kv_host_pages > 0;
  if (has_host_pages && device_limits_.most_host_share > 0 && rates_.attention_s == 0) {
    measure_host_attention();
    plan = make();
  }
  if (plan.needs_disk() && rates_.disk == 0) {
    measure_offload_disk(plan, build);
    plan = make();
  }
  if (plan.has_kv_on_disk() && rates_.kv_disk == 0) {
    const size_t page =
        DeviceStage::page_shape(checkpoint_->config(), options_.kv_format).page_bytes();
    measure_kv_disk(plan, KvWindow::run_of(page) * io_aligned(page));
    plan = make();
  }
  if (build && !plan.placement.all_resident() && !offload_) open_offload_file();
  return plan;
}

// What the disk does decides what is best to put there.
void Rank::measure_offload_disk(const StagePlan& plan, bool build) {
  if (build && !plan.placement.all_resident()) {
    open_offload_file();
    const Communicator::Idle measuring(wires_.communicator);
    rates_.disk = measure_read(offload_->file(), budget_);
  } else {
    make_writable_directory(options_.disk);
    const Communicator::Idle measuring(wires_.communicator);
    rates_.disk = measure_disk(options_.disk, plan.disk, budget_);
  }
}

void Rank::measure_kv_disk(const StagePlan& plan, uint64_t part) {
  make_writable_directory(options_.disk);
  const Communicator::Idle measuring(wires_.communicator);
  rates_.kv_disk =
      measure_disk(options_.disk, plan.disk, budget_, {.part = part, .scattered = true});
}

StagePlan Rank::make_plan(const Workload& workload, bool build) {
  if (device_choice_) return make_device_plan(workload, build);
  const ModelConfig& config = checkpoint_->config();
  const auto make = [&] {
    return plan_stage(config, layout_, stage_sizes(), workload, plan_limits(), rates_);
  };
  StagePlan plan = make();
  if (plan.needs_disk() && rates_.disk == 0) {
    measure_offload_disk(plan, build);
    plan = make();
  }
  if (plan.sizes.kv_disk_pages > 0 && rates_.kv_disk == 0) {
    const uint64_t page = io_aligned(Stage::page_shape(config, options_.kv_format).page_bytes());
    measure_kv_disk(plan, KvDisk::kExtentPages * page);
    plan = make();
  }
  if (build && !plan.placement.all_resident() && !offload_) open_offload_file();
  return plan;
}

void Rank::open_offload_file() {
  Communicator::Idle building(wires_.communicator);  // or waiting for who builds
  const auto say = [&](const std::string& line) {
    building.go_on();
    spdlog::info("{}", line);
    if (!interrupted_ || !*interrupted_) return;
    throw Interrupted("interrupted before the first step; run the same command again");
  };
  offload_ = OffloadFile::open_or_build({options_.disk, options_.disk_budget}, *checkpoint_, range_,
                                        layout_, budget_, threads_, say);
}

Agreement Rank::agree_on_plan() {
  const auto room_for_one = [this] {
    if (plan_.sizes.kv_disk_pages > 0) return plan_.sizes.kv_staging_pages;
    const bool passes = plan_.device && plan_.device->sizes.has_passing_pages();
    return passes ? plan_.device->sizes.kv_window : plan_.kv_pages();
  };
  Agreement room;
  room.kv_pages = plan_.kv_pages();
  room.sequence_pages = room_for_one();
  room.slots = plan_.sizes.slots;
  room.step_rows = plan_.sizes.step_rows;
  room.served = std::llround(1000 * plan_.served_per_s);
  return agree(wires_.communicator,
               {HEADRACE_VERSION, checkpoint_->fingerprint(), headrace::numerics(options_),
                schedule_text(options_), room, math(), range_.first_layer, range_.end_layer});
}

// Another rank has room for fewer sequences.
void Rank::plan_for_fewer(Workload workload, bool build) {
  if (plan_.device) {
    plan_.sizes.slots = workload.sequences;  // it has room for these and more
    return;
  }
  workload.exact = true;
  plan_ = make_plan(workload, build);
  plan_.sizes.slots = std::min(plan_.sizes.slots, workload.sequences);
}

// A rank that reads weights from disk reads them anew for each step that prompts take; one that is
// faster has steps as long as that wants them, as far as it stays the faster one and needs no disk
// for it.
void Rank::plan_for_longer_steps(Workload workload, const Agreement& agreed, bool build) {
  if (!plan_.device || plan_.sizes.step_rows >= agreed.longest_step) return;
  workload.wanted_step_rows = agreed.longest_step;
  if (agreed.served > 0) {
    workload.enough_per_s = kFaster * static_cast<double>(agreed.served) / 1000;
  }
  const uint64_t room = std::exchange(disk_room_, plan_.needs_disk() ? disk_room_ : 0);
  plan_ = make_plan(workload, build);
  disk_room_ = room;
}

// All ranks call it. Who is interrupted while it builds its offload file has removed what there is
// of it; then none goes on, and none ends before the others have done so.
void Rank::plan_together(const std::function<void()>& plan) {
  std::string interrupted;
  try {
    plan();
  } catch (const Interrupted& e) {
    interrupted = e.what();
  }
  for (const std::string why : share_with_all(wires_.communicator, interrupted)) {
    if (!why.empty()) throw Interrupted(why);
  }
}

void Rank::settle(Workload workload, bool build) {
  plan_together([&] { plan_ = make_plan(workload, build); });
  Agreement agreed = agree_on_plan();
  if (agreed.longest_step > agreed.step_rows) {
    plan_together([&] { plan_for_longer_steps(workload, agreed, build); });
    agreed = agree_on_plan();
  }
  // Who plans anew may have smaller steps or fewer pages for one sequence than it had said.
  for (int64_t slots = -1; agreed.slots != slots; agreed = agree_on_plan()) {
    slots = agreed.slots;
    workload.sequences = static_cast<int>(slots);
    plan_together([&] {
      if (slots < plan_.sizes.slots) plan_for_fewer(workload, build);
    });
  }
  math_of_all_ = agreed.math;
  if (plan_.device && agreed.kv_pages < plan_.sizes.kv_pages) {
    DeviceStage::Sizes& sizes = plan_.device->sizes;
    const ModelConfig& config = checkpoint_->config();
    plan_.disk -= DeviceStage::disk_kv_bytes(config, range_, sizes);
    int64_t less = sizes.kv_pages - agreed.kv_pages;
    for (int64_t* const pages : {&sizes.kv_disk_pages, &sizes.kv_host_pages}) {
      const int64_t here = std::min(less, *pages);
      *pages -= here;
      less -= here;
    }
    plan_.sizes.kv_pages = sizes.kv_pages = agreed.kv_pages;
    plan_.kv = DeviceStage::host_kv_bytes(config, range_, sizes);
    plan_.disk += DeviceStage::disk_kv_bytes(config, range_, sizes);
  } else if (plan_.sizes.kv_disk_pages == 0 && agreed.kv_pages < plan_.sizes.kv_pages) {
    plan_.sizes.kv_pages = agreed.kv_pages;
    plan_.kv = Stage::kv_bytes(checkpoint_->config(), range_, plan_.sizes);
  }
  shorten_steps(agreed.step_rows);
  limits_.slots = plan_.sizes.slots;
  limits_.groups = std::min(wires_.communicator.size(), limits_.slots);
  limits_.kv_pages = agreed.kv_pages;
  limits_.sequence_pages = agreed.sequence_pages;
  limits_.step_rows = agreed.step_rows;
  limits_.window_bytes = static_cast<int64_t>(other_.requests);
  limits_.prefill_chunk = options_.prefill_chunk > 0 ? options_.prefill_chunk : limits_.step_rows;
  if (options_.share_prefixes) settle_sharing();
}

// Another rank has room for fewer rows.
void Rank::shorten_steps(int64_t rows) {
  if (!plan_.device || rows >= plan_.sizes.step_rows) return;
  DeviceStage::Sizes& sizes = plan_.device->sizes;
  plan_.sizes.step_rows = sizes.step_rows = rows;
  plan_.sizes.micro_batch_rows = sizes.micro_batch_rows = std::min(sizes.micro_batch_rows, rows);
  const int64_t before =
      std::exchange(plan_.host_hidden_rows, std::min(plan_.host_hidden_rows, rows));
  plan_.activations -= static_cast<uint64_t>(link_buffers(range_)) *
                       link_buffer_bytes(checkpoint_->config(), before - plan_.host_hidden_rows);
}

void Rank::settle_sharing() {
  Communicator& ranks = wires_.communicator;
  PageSharing mine;
  const std::string stage = "stage " + std::to_string(ranks.rank() + 1);
  if (plan_.has_kv_on_disk()) {
    mine.why_not = stage + " has KV pages on disk";
  } else if (plan_.device && plan_.device->sizes.has_passing_pages()) {
    mine.why_not = stage + " has KV pages in host memory, beside its GPU's";
  }
  mine.table_pages = plan_.sizes.kv_pages;  // a GPU's page tables have no more room
  if (!plan_.device) {
    // An address and a page number, in vectors that double; prompts twice on rank 0.
    constexpr int64_t kBytes =
        2 * (sizeof(std::byte*) + sizeof(int64_t) + kPageTokens * sizeof(int32_t));
    mine.table_pages = std::max(mine.table_pages, kTableBytes / kBytes);
  }
  const PageSharing agreed = agree(ranks, mine);
  if (!agreed.why_not.empty()) {
    if (wires_.is_first()) {
      spdlog::info("prompts that begin alike are computed one by one: {}", agreed.why_not);
    }
    return;
  }
  limits_.shares_prefixes = true;
  limits_.kept_slots = plan_.sizes.kept_slots = kKeptSlots;
  limits_.table_pages = agreed.table_pages;
}

}  // namespace headrace
