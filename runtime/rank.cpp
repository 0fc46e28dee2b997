#include "runtime/rank.h"

#include <malloc.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "comm/error.h"
#include "engine/error.h"
#include "engine/io/directory.h"
#include "engine/ops/int8.h"
#include "runtime/demand.h"
#include "runtime/open_model.h"
#include "runtime/plan/host_memory.h"
#include "runtime/report/host_facts.h"

namespace headrace {
namespace {

// Transfers under way.
constexpr int kWeightReads = 64;
constexpr int kKvTransfers = 1024;

bool has_codes(const WeightLayout& layout) {
  for (const WeightUnit& unit : layout.units) {
    for (const PlacedMatrix& matrix : unit.matrices) {
      if (headrace::has_codes(matrix.tensor->dtype)) return true;
    }
  }
  return false;
}

int thread_count(const RunOptions& options, int cores) {
  return options.threads > 0 ? options.threads : cores;
}

uint64_t memory_limit(const RunOptions& options, int ranks_on_host) {
  if (options.host_memory > 0) return options.host_memory;
  return default_host_memory(available_host_memory(), ranks_on_host);
}

}  // namespace

std::string numerics(const RunOptions& options, const std::string& math) {
  const std::string shown = options.int8() ? "int8" : math;
  return std::string("weights=") + weight_format_name(options.weights) +
         " kv=" + kv_format_name(options.kv_format) + (shown.empty() ? "" : " math=" + shown) +
         " wire=f32";
}

Rank::Rank(const RunOptions& options, const Wires& wires, const RequestSizes& requests, bool build,
           const std::atomic<bool>* interrupt)
    : Rank(options, wires, requests, build, interrupt,
           cores_of_this_process().for_one_of(wires.communicator.ranks_on_host())) {}

Rank::Rank(const RunOptions& options, const Wires& wires, const RequestSizes& requests, bool build,
           const std::atomic<bool>* interrupt, int cores)
    : options_(options),
      wires_(wires),
      interrupted_(interrupt),
      kernels_(kernels(options.target)),
      // A spinning worker would take time from another rank.
      threads_(thread_count(options, cores), thread_count(options, cores) > cores ? 0 : 50),
      budget_("host memory", memory_limit(options, wires.communicator.ranks_on_host())) {
  Communicator& ranks = wires.communicator;
  ranks.watch_progress([this] { return threads_.progress(); });
  checkpoint_ = open_model(options.model, options.weights);
  range_ = cut_stages(*checkpoint_, ranks.size(), options.split)[ranks.rank()];
  layout_ = weight_layout(*checkpoint_, range_);
  if (!options.disk.empty()) {
    const OffloadPlace place{options.disk, options.disk_budget};
    disk_room_ = OffloadFile::room(place, *checkpoint_, range_, layout_, ranks.ranks_on_host());
  }
  const RequestSizes sizes = from_rank_0(ranks, requests);
  const Workload wanted = workload_of(options, sizes, checkpoint_->config(), ranks.size());
  other_ = other_memory(sizes.logprobs * wanted.sequences);
  choose_device();
  find_device_budget();
  choose_hops();
  if (!device_choice_) refuse_what_does_not_fit(wanted);
  budget_.set_aside(other_.sum(), "tokenizer, requests and trace");
  if (!device_choice_) measure_computing();
  settle(wanted, build);
  say_plan();
}

OtherMemory Rank::other_memory(int64_t logprobs) const {
  OtherMemory other;
  if (!options_.trace.empty()) other.trace = kTraceBytes;
  if (!options_.takes_requests || !wires_.is_first()) return other;
  other.requests = kReadAheadBytes;
  other.logprobs = static_cast<uint64_t>(logprobs);
  if (checkpoint_->format() != "synthetic") {
    other.tokenizer = tokenizer_bytes(checkpoint_->config().vocab_size);
  }
  return other;
}

void Rank::refuse_what_does_not_fit(const Workload& wanted) const {
  const ModelConfig& config = checkpoint_->config();
  try {
    plan_stage(config, layout_, stage_sizes(), wanted, plan_limits(), {});
  } catch (const DoesNotFit&) {
    // A directory that cannot be used is the better reason.
    if (!options_.disk.empty() && disk_room_ == 0 && options_.disk_budget > 0) {
      make_writable_directory(options_.disk);
    }
    throw;
  }
}

Stage::Sizes Rank::stage_sizes() const {
  const ModelConfig& config = checkpoint_->config();
  return device_choice_ ? sizes_on_device(options_, config) : sizes_on_host(options_, config);
}

std::string Rank::target() const {
  if (!device_choice_) return std::string(kernels_.name) + (options_.int8() ? ", int8" : "");
  return device_choice_.facts.name + (device_limits_.half ? ", f16" : ", f32");
}

std::string Rank::math() const {
  if (options_.int8()) return "int8";
  if (!device_choice_ || !device_limits_.half) return "f32";
  // Which sequences a CPU attends to is not the same in another run.
  const bool is_shared = device_limits_.most_host_share > 0;
  return "f16 on " + device_choice_.facts.name + " (" + device_choice_.products + ")" +
         (is_shared ? " with host attention" : "");
}

void Rank::choose_device() {
  const Communicator& ranks = wires_.communicator;
  const Communicator::Idle measuring(wires_.communicator);  // drivers take their time
  device_choice_ = headrace::choose_device(options_, ranks.place_on_host());
  if (!device_choice_) return;
  device_place_ = ranks.host(ranks.rank()) + " " + device_choice_.facts.bus;
  rates_.link = device_choice_.link.to_device;
  rates_.device_memory = device_choice_.link.memory;
  device_limits_.weights = options_.device_weights;
  device_limits_.kv = options_.device_kv;
  device_limits_.half = options_.math != "f32";
  const HostShare by_itself{0, device_limits_.half ? 0.0 : 1.0};
  const HostShare share = options_.host_share.value_or(by_itself);
  device_limits_.least_host_share = share.least;
  device_limits_.most_host_share = share.most;
}

// Of a GPU that several ranks share, each takes a part.
void Rank::find_device_budget() {
  const std::string part =
      device_choice_ ? device_place_ + " " + device_choice_.facts.uuid : std::string();
  const GpuSharers sharers = find_sharers(wires_.communicator, part, options_.device_memory);
  if (!device_choice_) return;
  // Now that all of them have begun to use it.
  const DeviceFacts facts = device_choice_.module->facts(device_choice_.number);
  device_limits_.memory = device_budget(facts, options_.device_memory, sharers);
}

void Rank::choose_hops() {
  Communicator& ranks = wires_.communicator;
  if (ranks.size() == 1) return;
  HopEnd mine;
  if (device_choice_) mine.gpu = device_place_;
  if (device_choice_ && options_.link != "mpi") {
    const Communicator::Idle opening(ranks);
    try {
      device_wires_ = open_device_wires(options_.cuda_module);
      mine.nccl = device_wires_->version();
    } catch (const CommError& e) {
      mine.why_no_nccl = e.what();
    }
  }
  hops_ = headrace::choose_hops(ranks, options_.link, mine);
  const int rank = ranks.rank();
  const bool from_wire = rank > 0 && hops_[rank - 1].over_wire;
  const bool to_wire = !wires_.is_last() && hops_[rank].over_wire;
  device_limits_.wires = from_wire + to_wire;
}

HopWires Rank::connect() {
  Communicator& ranks = wires_.communicator;
  HopWires wires = connect_hops(ranks, device_wires_.get(), device_choice_.number, options_.link,
                                std::chrono::duration<double>(options_.peer_timeout), hops_);
  if (!wires_.is_last()) {
    const Hop& hop = hops_[ranks.rank()];
    const std::string line = describe(hop, ranks.rank());
    if (!line.empty()) spdlog::log(hop.failed ? spdlog::level::warn : spdlog::level::info, line);
  }
  return wires;
}

void Rank::say_plan() const {
  const Communicator& ranks = wires_.communicator;
  spdlog::info("stage {} of {}: {}; {} thread{}, {}", ranks.rank() + 1, ranks.size(),
               describe(plan_), threads_.threads(), threads_.threads() == 1 ? "" : "s", target());
  spdlog::info("stage {} expects, for {}", ranks.rank() + 1, describe_prediction(plan_));
  if (!device_choice_.why_not.empty()) {
    spdlog::info("stage {} computes on its CPU: {}", ranks.rank() + 1, device_choice_.why_not);
  }
  if (plan_.needs_disk()) {
    spdlog::info("stage {} reads {} at {:.0f} MB/s, through {}", ranks.rank() + 1, options_.disk,
                 rates_.disk / 1e6, make_io_queue(kWeightReads)->description());
  }
  if (options_.int8() && !has_codes(layout_)) {
    spdlog::warn(
        "stage {}: --math int8 changes nothing here, for no weights are quantised; give "
        "--weights q8 or q4, too",
        ranks.rank() + 1);
  }
  const Cores cores = cores_of_this_process();
  if (options_.threads == 0 && cores.bound_to_one(ranks.ranks_on_host())) {
    spdlog::warn(
        "stage {} is bound to {} of the machine's {} cores; start with mpirun --bind-to none, or "
        "under Slurm with --exclusive or --cpus-per-task (--threads {} if it is meant to be so)",
        ranks.rank() + 1, cores.usable, cores.machine, cores.usable);
  }
  if (options_.host_memory > available_host_memory() + budget_.used()) {
    spdlog::warn(
        "--host-memory {} is more than the {} that this machine or its cgroup has left; "
        "the run may be killed for memory",
        format_bytes(options_.host_memory), format_bytes(available_host_memory()));
  }
}

Expected Rank::expected() const {
  Expected expected;
  if (plan_.round_s > 0) expected.step_s = plan_.round_s / limits_.groups;
  if (plan_.needs_disk()) {
    expected.rates[static_cast<size_t>(Track::kWeightsIn)] = rates_.disk;
    expected.rates[static_cast<size_t>(Track::kKvIn)] = rates_.kv_rate();
  }
  if (plan_.device) {
    for (const Track track : {Track::kWeightsToGpu, Track::kKvToGpu, Track::kHiddenToGpu}) {
      expected.rates[static_cast<size_t>(track)] = rates_.link;
    }
  }
  return expected;
}

// Beside what the ranks of this host still take under the budget they were given, the page cache of
// the model has no room. Without a given budget the kernel may decide, and the next start is quick.
bool Rank::memory_is_tight() const {
  const auto ranks = static_cast<uint64_t>(wires_.communicator.ranks_on_host());
  return options_.host_memory > 0 &&
         available_host_memory() < ranks * (budget_.available() + plan_.all_weights);
}

void Rank::load() {
  HopWires hops = connect();
  // What metadata and tokenizer needed while they were read goes back to the system.
  ::malloc_trim(0);
  const ModelConfig& config = checkpoint_->config();
  load_weights();
  const Cpu cpu{threads_, kernels_};
  const KvDiskAccess disk{options_.disk, [] { return make_io_queue(kKvTransfers); },
                          !options_.serial};
  if (plan_.device) {
    if (!hops.previous && !hops.next) plan_.device->sizes.link_buffers = 0;
    device_.emplace(device_choice_.module->open(device_choice_.number), *checkpoint_, *weights_,
                    threads_, budget_, plan_.device->sizes, disk);
    stage_.emplace(config, *weights_, *device_, cpu, budget_, plan_.sizes);
  } else {
    stage_.emplace(config, *weights_, cpu, budget_, plan_.sizes, disk);
  }
  const size_t bytes = link_buffer_bytes(config, plan_.host_hidden_rows);
  std::vector<ActivationLink::HiddenBuffer> spans;
  for (int i = 0; i < link_buffers(range_); ++i) {
    hidden_.push_back(budget_.allocate(bytes, "activations"));
    spans.emplace_back(hidden_.back().data(), bytes);
    if (device_) device_->pin(spans.back());
  }
  // Off a disk it would take too long.
  if (plan_.device && !plan_.needs_disk()) stage_->warm_up(hidden_.front().as<float>());
  if (hops.previous || hops.next) {
    link_.emplace(wires_.communicator, wires_.link, std::move(hops.previous), std::move(hops.next),
                  device_->link_memory());
  }
  link().set_buffers(spans, !wires_.is_first());
}

void Rank::load_weights() {
  if (plan_.placement.all_resident()) {
    const bool tight = memory_is_tight();
    if (tight) checkpoint_->drop_all_cache();
    weights_.emplace(*checkpoint_, range_, budget_, threads_, tight, plan_.placement.ends);
  } else {
    weights_.emplace(*checkpoint_, range_,
                     WeightOffload{plan_.placement, *offload_,
                                   [] { return make_io_queue(kWeightReads); }, !options_.serial},
                     budget_, threads_);
    // What fingerprint, vectors and measurements were read from, and what the kernel read ahead.
    checkpoint_->drop_all_cache();
  }
}

void Rank::coordinate(Coordinator& coordinator, const std::atomic<bool>& interrupted,
                      const std::function<void()>& after_step) {
  run_coordinator(coordinator, *stage_, checkpoint_->config().d_model,
                  {wires_.communicator, link()}, interrupted, after_step);
}

void Rank::follow() {
  run_stage(*stage_, checkpoint_->config().d_model, {wires_.communicator, link()});
}

void Rank::finish() {
  if (link_) link_->close();
  wires_.communicator.finish();
}

}  // namespace headrace
