#include "runtime/rank.h"

#include <sched.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "headrace/version.h"
#include "runtime/open_model.h"
#include "runtime/plan/agreement.h"

namespace headrace {
namespace {

constexpr int kDefaultSlots = 256;
constexpr int64_t kStepRows = 512;
constexpr int64_t kLongestStep = 8192;  // rows, where whole prompts go in one step

int cores_for_this_rank(int ranks_on_host) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const long all = sysconf(_SC_NPROCESSORS_ONLN);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < all) return CPU_COUNT(&set);
  return std::max(1,
                  static_cast<int>(all) / ranks_on_host);  // not bound: shared by the node's ranks
}

Stage::Sizes stage_sizes(const RunOptions& options, const ModelConfig& config) {
  Stage::Sizes sizes;
  sizes.slots = options.max_batch > 0 ? options.max_batch : kDefaultSlots;
  sizes.step_rows = kStepRows;
  if (options.prefill_chunk == 0 || options.prefill_chunk > kStepRows) {
    const int64_t wanted = options.prefill_chunk == 0 ? kLongestStep : options.prefill_chunk;
    sizes.step_rows = std::clamp<int64_t>(std::min<int64_t>(wanted, config.max_positions),
                                          kStepRows, kLongestStep);
  }
  sizes.micro_batch_rows = std::min<int64_t>(256, sizes.step_rows);
  sizes.kv_format = options.kv_format;
  return sizes;
}

std::string schedule_text(const RunOptions& options) {
  std::string text = "max-batch " + std::to_string(options.max_batch) + ", prefill-chunk " +
                     std::to_string(options.prefill_chunk) + ", split";
  for (const int layers : options.split) text += " " + std::to_string(layers);
  if (!options.trace.empty()) text += ", traced";
  return text;
}

int thread_count(const RunOptions& options, int cores) {
  return options.threads > 0 ? options.threads : cores;
}

uint64_t memory_limit(const RunOptions& options, int ranks_on_host) {
  if (options.host_memory > 0) return options.host_memory;
  return available_host_memory() / 10 * 9 / ranks_on_host;
}

}  // namespace

std::string numerics(const RunOptions& options) {
  return std::string("weights=") + weight_format_name(options.weights) +
         " kv=" + kv_format_name(options.kv_format) + " math=f32 wire=f32";
}

Rank::Rank(const RunOptions& options, const Wires& wires)
    : Rank(options, wires, cores_for_this_rank(wires.communicator.ranks_on_host())) {}

Rank::Rank(const RunOptions& options, const Wires& wires, int cores)
    : wires_(wires),
      kernels_(kernels(options.target)),
      // A spinning worker would take time from another rank.
      threads_(thread_count(options, cores), thread_count(options, cores) > cores ? 0 : 50),
      budget_("host memory", memory_limit(options, wires.communicator.ranks_on_host())) {
  Communicator& ranks = wires.communicator;
  ranks.watch_progress([this] { return threads_.progress(); });
  checkpoint_ = open_model(options.model, options.weights);
  const ModelConfig& config = checkpoint_->config();
  range_ = cut_stages(*checkpoint_, ranks.size(), options.split)[ranks.rank()];
  sizes_ = stage_sizes(options, config);
  StageMemory memory = plan_memory(*checkpoint_, range_, sizes_, budget_.limit());
  if (options.max_tokens > 0) {
    memory.kv_pages =
        std::min(memory.kv_pages, sizes_.slots * KvStore::pages_for(options.max_tokens));
  }
  sizes_.kv_pages = agree(ranks, {HEADRACE_VERSION, checkpoint_->fingerprint(), numerics(options),
                                  schedule_text(options), memory.kv_pages});
  memory.kv_pages = sizes_.kv_pages;
  limits_.slots = sizes_.slots;
  limits_.groups = std::min(ranks.size(), sizes_.slots);
  limits_.kv_pages = sizes_.kv_pages;
  limits_.step_rows = sizes_.step_rows;
  limits_.prefill_chunk = options.prefill_chunk > 0 ? options.prefill_chunk : sizes_.step_rows;
  plan_text_ = describe(range_, memory);
  spdlog::info("stage {} of {}: {}; {} thread{}, {}", ranks.rank() + 1, ranks.size(), plan_text_,
               threads_.threads(), threads_.threads() == 1 ? "" : "s", kernels_.name);
}

void Rank::load() {
  const ModelConfig& config = checkpoint_->config();
  weights_.emplace(*checkpoint_, range_, budget_, threads_);
  stage_.emplace(config, *weights_, Cpu{threads_, kernels_}, budget_, sizes_);
  const size_t bytes = link_buffer_bytes(config, sizes_.step_rows);
  std::vector<ActivationLink::HiddenBuffer> spans;
  for (int i = 0; i < kLinkBuffers; ++i) {
    hidden_.push_back(budget_.allocate(bytes, "activations"));
    spans.emplace_back(hidden_.back().data(), bytes);
  }
  wires_.link.set_buffers(spans);
}

void Rank::coordinate(Coordinator& coordinator, const std::atomic<bool>& interrupted,
                      const std::function<void()>& after_step) {
  run_coordinator(coordinator, *stage_, checkpoint_->config().d_model, wires_, interrupted,
                  after_step);
}

void Rank::follow() { run_stage(*stage_, checkpoint_->config().d_model, wires_); }

}  // namespace headrace
