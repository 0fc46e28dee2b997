#include "runtime/run.h"

#include <sched.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "engine/checkpoint/checkpoint.h"
#include "headrace/version.h"
#include "runtime/desk.h"
#include "runtime/plan/agreement.h"
#include "runtime/plan/stage_plan.h"
#include "runtime/report/run_report.h"

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

// Stops the communicator's own thread before what it uses goes.
struct HaltOnExit {
  Communicator& communicator;
  ~HaltOnExit() { communicator.halt(); }
};

}  // namespace

std::string numerics(const RunOptions& options) {
  return std::string("kv=") + (options.kv_format == KvFormat::kF16 ? "f16" : "f32") +
         " math=f32 wire=f32";
}

RunEnd run_rank(const RunOptions& options, const Wires& wires,
                const std::atomic<bool>& interrupted) {
  Communicator& ranks = wires.communicator;
  const Kernels& kernels_of_target = kernels(options.target);
  const int cores = cores_for_this_rank(ranks.ranks_on_host());
  const int thread_count = options.threads > 0 ? options.threads : cores;
  const uint64_t memory_limit = options.host_memory > 0
                                    ? options.host_memory
                                    : available_host_memory() / 10 * 9 / ranks.ranks_on_host();

  // What the communicator's own thread reads and writes outlives `halt`.
  ThreadPool threads(thread_count, thread_count > cores ? 0 : 50);
  MemoryBudget budget("host memory", memory_limit);
  std::vector<Buffer> hidden;
  RunReport report(options, ranks);
  const HaltOnExit halt{ranks};

  ranks.watch_progress([&threads] { return threads.progress(); });
  const Cpu cpu{threads, kernels_of_target};
  const auto checkpoint = Checkpoint::open(options.model);
  const ModelConfig& config = checkpoint->config();
  const StageRange range = cut_stages(*checkpoint, ranks.size(), options.split)[ranks.rank()];
  Stage::Sizes sizes = stage_sizes(options, config);
  StageMemory memory = plan_memory(*checkpoint, range, sizes, memory_limit);
  sizes.kv_pages = agree(ranks, {HEADRACE_VERSION, checkpoint->fingerprint(), numerics(options),
                                 schedule_text(options), memory.kv_pages});
  memory.kv_pages = sizes.kv_pages;
  spdlog::info("stage {} of {}: {}; {} thread{}, {}", ranks.rank() + 1, ranks.size(),
               describe(range, memory), thread_count, thread_count == 1 ? "" : "s",
               kernels_of_target.name);

  std::optional<Desk> desk;
  const int groups = std::min(ranks.size(), sizes.slots);
  if (wires.is_first()) {
    report.open_files();
    const Communicator::Idle reading_back(ranks);  // a long results file takes its time
    desk.emplace(options, *checkpoint, sizes, groups, ranks);
  }

  const WeightStore weights(*checkpoint, range, budget, threads);
  Stage stage(config, weights, cpu, budget, sizes);
  std::vector<ActivationLink::HiddenBuffer> spans;
  for (int i = 0; i < kLinkBuffers; ++i) {
    hidden.push_back(budget.allocate(link_buffer_bytes(config, sizes.step_rows), "activations"));
    spans.emplace_back(hidden.back().data(), link_buffer_bytes(config, sizes.step_rows));
  }
  wires.link.set_buffers(spans);

  report.begin({range.first_layer, range.end_layer, thread_count, kernels_of_target.name,
                describe(range, memory)});
  RunEnd end = RunEnd::kDone;
  if (desk) {
    run_coordinator(desk->coordinator(), stage, config.d_model, wires, interrupted,
                    [&] { desk->show_progress(); });
    report.end();
    end = desk->close(interrupted);
  } else {
    run_stage(stage, config.d_model, wires);
    report.end();
  }
  report.finish(desk ? desk->counts() : RunCounts{}, end);
  ranks.finish();
  report.check_files();
  return end;
}

}  // namespace headrace
