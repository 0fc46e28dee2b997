#include "runtime/run.h"

#include <sched.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "engine/checkpoint/checkpoint.h"
#include "engine/error.h"
#include "headrace/version.h"
#include "runtime/error.h"
#include "runtime/plan/agreement.h"
#include "runtime/plan/stage_plan.h"
#include "runtime/requests/prepare.h"
#include "runtime/requests/request_reader.h"
#include "runtime/results/results_file.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

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

std::string numerics(const RunOptions& options) {
  return std::string("kv=") + (options.kv_format == KvFormat::kF16 ? "f16" : "f32") +
         " math=f32 wire=f32";
}

std::string schedule_text(const RunOptions& options) {
  std::string text = "max-batch " + std::to_string(options.max_batch) + ", prefill-chunk " +
                     std::to_string(options.prefill_chunk) + ", split";
  for (const int layers : options.split) text += " " + std::to_string(layers);
  return text;
}

// Lines of a batch file that are not blank, or -1 for standard input.
int64_t count_requests(const RunOptions& options) {
  if (options.prompt) return 1;
  if (options.input == "-") return -1;
  std::ifstream file(options.input, std::ios::binary);
  std::vector<char> block(1 << 20);
  int64_t lines = 0;
  bool text = false;
  while (file.read(block.data(), static_cast<std::streamsize>(block.size())), file.gcount() > 0) {
    for (std::streamsize i = 0; i < file.gcount(); ++i) {
      if (block[i] == '\n') {
        lines += text;
        text = false;
      } else if (block[i] != ' ' && block[i] != '\t' && block[i] != '\r') {
        text = true;
      }
    }
  }
  return lines + text;
}

// Rank 0's side of a run: requests in, results out.
class Desk {
 public:
  Desk(const RunOptions& options, const Checkpoint& checkpoint, const Stage::Sizes& sizes,
       int groups, Communicator& communicator)
      : options_(options),
        communicator_(communicator),
        tokenizer_(Tokenizer::open(options.model)),
        reader_(open_input(options)),
        results_(results_options(), manifest(checkpoint)),
        preparer_(checkpoint.config(), tokenizer_.get(), chat_template(),
                  sizes.kv_pages * kPageTokens),
        progress_(count_requests(options) - results_.resumed(), options.progress),
        coordinator_(
            limits(sizes, groups), tokenizer_.get(), checkpoint.config().eos_token_ids,
            [this] { return next(); }, [this](const RequestResult& result) { done(result); },
            [this](const BadLine& line) { failed(line); }) {
    if (results_.resumed() > 0)
      spdlog::info("{} requests were done before and are kept", results_.resumed());
  }

  Coordinator& coordinator() { return coordinator_; }
  void show_progress() { progress_.update(coordinator_.counts(), failed_); }

  RunEnd close(bool interrupted) {
    results_.close();
    progress_.finish(coordinator_.counts(), failed_);
    if (interrupted && coordinator_.unfinished()) return RunEnd::kInterrupted;
    return failed_ + results_.resumed_errors() > 0 ? RunEnd::kSomeFailed : RunEnd::kDone;
  }

 private:
  // Before the results file, which a wrong --input would leave behind empty.
  static std::optional<RequestReader> open_input(const RunOptions& options) {
    if (options.prompt) return std::nullopt;
    return std::optional<RequestReader>(std::in_place, options.input, options.defaults);
  }

  bool plain_text() const { return options_.prompt && options_.output == "-"; }

  ResultsFile::Options results_options() const {
    ResultsFile::Options results;
    results.path = options_.output;
    results.resume = options_.resume;
    results.token_ids = options_.token_ids;
    if (tokenizer_) {
      results.token_text = [this](int token) {
        return tokenizer_->decode(std::vector{token}, false);
      };
      results.token_raw_bytes = [this](int token) { return std::string(tokenizer_->bytes(token)); };
    }
    return results;
  }

  Manifest manifest(const Checkpoint& checkpoint) const {
    return {checkpoint.config().name, checkpoint.fingerprint(), options_.defaults,
            numerics(options_)};
  }

  std::optional<ChatTemplate> chat_template() const {
    const std::string bos = tokenizer_ ? tokenizer_->bos_token() : "";
    if (!options_.chat_template.empty()) {
      auto named = ChatTemplate::named(options_.chat_template, bos);
      if (!named) {
        throw UsageError("--chat-template " + options_.chat_template + " is not known; use " +
                         ChatTemplate::known_names());
      }
      return named;
    }
    return tokenizer_ ? ChatTemplate::recognise(tokenizer_->chat_template(), bos) : std::nullopt;
  }

  ScheduleLimits limits(const Stage::Sizes& sizes, int groups) const {
    ScheduleLimits limits;
    limits.slots = sizes.slots;
    limits.groups = groups;
    limits.kv_pages = sizes.kv_pages;
    limits.step_rows = sizes.step_rows;
    limits.prefill_chunk = options_.prefill_chunk > 0 ? options_.prefill_chunk : sizes.step_rows;
    limits.order = options_.order;
    return limits;
  }

  // The next request that is neither done already nor wrong.
  std::optional<PreparedRequest> next() {
    for (;;) {
      auto line = next_line();
      if (!line) return std::nullopt;
      if (const auto* bad = std::get_if<BadLine>(&*line)) {
        if (!results_.has(bad->custom_id)) failed(*bad);
        continue;
      }
      auto& request = std::get<Request>(*line);
      if (results_.has(request.custom_id)) continue;
      auto prepared = preparer_.prepare(std::move(request));
      if (auto* ready = std::get_if<PreparedRequest>(&prepared)) return std::move(*ready);
      failed(std::get<BadLine>(prepared));
    }
  }

  std::optional<std::variant<Request, BadLine>> next_line() {
    if (reader_) {
      const Communicator::Idle waiting_for_input(communicator_);
      return reader_->next();
    }
    if (std::exchange(prompt_taken_, true)) return std::nullopt;
    Request request;
    request.custom_id = "prompt";
    request.max_tokens = options_.defaults.max_tokens;
    request.ignore_eos = options_.defaults.ignore_eos;
    request.sampling = options_.defaults.sampling;
    if (options_.chat) {
      request.endpoint = Endpoint::kChatCompletions;
      request.prompt = std::vector<ChatMessage>{{"user", *options_.prompt}};
    } else {
      request.prompt = *options_.prompt;
    }
    return request;
  }

  void done(const RequestResult& result) {
    if (!plain_text()) return results_.append(result);
    if (std::printf("%s\n", result.choices.front().text.c_str()) < 0 || std::fflush(stdout) != 0) {
      throw IoError(std::string("writing to standard output failed: ") + std::strerror(errno));
    }
  }

  void failed(const BadLine& line) {
    ++failed_;
    progress_.clear_line();
    spdlog::warn("{}{}", options_.prompt ? "" : line.custom_id + ": ", line.message);
    if (!plain_text()) results_.append(line);
  }

  const RunOptions& options_;
  Communicator& communicator_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<RequestReader> reader_;
  ResultsFile results_;
  RequestPreparer preparer_;
  Progress progress_;
  int64_t failed_ = 0;
  bool prompt_taken_ = false;
  Coordinator coordinator_;
};

struct HaltOnExit {
  Communicator& communicator;
  ~HaltOnExit() { communicator.halt(); }
};

}  // namespace

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
  if (wires.is_first()) desk.emplace(options, *checkpoint, sizes, groups, ranks);

  const WeightStore weights(*checkpoint, range, budget, threads);
  Stage stage(config, weights, cpu, budget, sizes);
  std::vector<ActivationLink::HiddenBuffer> spans;
  for (int i = 0; i < kLinkBuffers; ++i) {
    hidden.push_back(budget.allocate(link_buffer_bytes(config, sizes.step_rows), "activations"));
    spans.emplace_back(hidden.back().data(), link_buffer_bytes(config, sizes.step_rows));
  }
  wires.link.set_buffers(spans);

  RunEnd end = RunEnd::kDone;
  if (desk) {
    run_coordinator(desk->coordinator(), stage, config.d_model, wires, interrupted,
                    [&] { desk->show_progress(); });
    end = desk->close(interrupted);
  } else {
    run_stage(stage, config.d_model, wires);
  }
  ranks.finish();
  return end;
}

}  // namespace headrace
