#include "runtime/perplexity.h"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <vector>

#include "engine/memory/kv_store.h"
#include "engine/memory/weight_store.h"
#include "engine/ops/cpu/cpu.h"
#include "engine/stage_engine.h"
#include "runtime/error.h"
#include "runtime/open_model.h"
#include "runtime/pipeline/stage.h"
#include "runtime/plan/host_memory.h"
#include "runtime/report/host_facts.h"
#include "runtime/text/tokenizer.h"

namespace headrace {
namespace {

constexpr int64_t kMicroBatchRows = 256;
constexpr int64_t kLogitRows = 16;  // rows whose logits are in memory at once
constexpr int64_t kPiece = 4096;    // logits that are summed in float

void check(const ModelConfig& config, int window, const std::vector<int32_t>& prefix,
           const std::vector<int32_t>& ids) {
  const int64_t least = std::ssize(prefix) + 2;
  if (window < least || window > config.max_positions) {
    throw UsageError("--window " + std::to_string(window) + " must be " + std::to_string(least) +
                     " to " + std::to_string(config.max_positions) + " for this model");
  }
  if (ids.empty() || prefix.size() + ids.size() < 2) {
    throw UsageError("the text is too short: it has " + std::to_string(ids.size()) +
                     " tokens, and nothing to predict");
  }
  for (const auto* list : {&prefix, &ids}) {
    for (const int32_t id : *list) {
      if (id >= 0 && id < config.vocab_size) continue;
      throw UsageError("token " + std::to_string(id) + " of the text is not one of the model's " +
                       std::to_string(config.vocab_size) +
                       "; tokenizer and weights do not belong together, fetch the model again");
    }
  }
}

// The whole model on one rank, one sequence at a time.
class Predictor {
 public:
  Predictor(const Checkpoint& checkpoint, const PerplexityOptions& options, const Cpu& cpu,
            MemoryBudget& budget)
      : config_(checkpoint.config()),
        cpu_(cpu),
        weights_(checkpoint, {0, config_.n_layers, true, true}, budget, cpu.threads),
        kv_(Stage::page_shape(config_, options.kv_format), config_.n_layers,
            KvStore::pages_for(options.window), 1, budget),
        engine_(config_, weights_, kv_, cpu, budget, kMicroBatchRows, kLogitRows, options.int8),
        hidden_(budget.allocate(floats(options.window * config_.d_model), "activations")) {}

  // The sum of -log(probability) of tokens[1 ..].
  double nats(std::span<const int32_t> tokens) {
    const auto inputs = tokens.first(tokens.size() - 1);
    const int64_t rows = std::ssize(inputs);
    const std::vector<BatchItem> batch = {{0, 0, rows}};
    auto* hidden = hidden_.as<float>();
    engine_.embed(batch, inputs, hidden);
    engine_.sweep(batch, hidden);
    engine_.release(0);
    double sum = 0.0;
    engine_.head(hidden, {}, rows, [&](int64_t first, int64_t count, const float* logits) {
      for (int64_t i = 0; i < count; ++i) {
        sum += row_nats(logits + i * config_.vocab_size, tokens[first + i + 1]);
      }
    });
    return sum;
  }

 private:
  static size_t floats(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }

  double row_nats(const float* logits, int32_t token) const {
    const int64_t vocabulary = config_.vocab_size;
    const float max = logits[cpu_.kernels.argmax(logits, vocabulary)];
    double sum = 0.0;
    for (int64_t at = 0; at < vocabulary; at += kPiece) {
      sum += cpu_.kernels.sum_exp(logits + at, max, std::min(kPiece, vocabulary - at));
    }
    return max + canonical_log(sum) - logits[token];
  }

  const ModelConfig& config_;
  Cpu cpu_;
  WeightStore weights_;
  KvStore kv_;
  StageEngine engine_;
  Buffer hidden_;  // [window][d_model]
};

}  // namespace

Perplexity perplexity_of_ids(const Checkpoint& checkpoint, const PerplexityOptions& options,
                             const std::vector<int32_t>& prefix, const std::vector<int32_t>& ids) {
  check(checkpoint.config(), options.window, prefix, ids);
  ThreadPool threads(options.threads > 0 ? options.threads : cores_of_this_process().for_one_of(1));
  MemoryBudget budget("host memory", options.host_memory > 0
                                         ? options.host_memory
                                         : default_host_memory(available_host_memory(), 1));
  Predictor predictor(checkpoint, options, {threads, kernels(options.target)}, budget);
  Perplexity result;
  const int64_t per_window = options.window - std::ssize(prefix);
  for (int64_t at = 0; at < std::ssize(ids); at += per_window) {
    std::vector<int32_t> window = prefix;
    const int64_t count = std::min(per_window, std::ssize(ids) - at);
    window.insert(window.end(), ids.begin() + at, ids.begin() + at + count);
    if (window.size() < 2) break;
    result.nats += predictor.nats(window);
    result.tokens += std::ssize(window) - 1;
    ++result.windows;
  }
  return result;
}

Perplexity measure_perplexity(const PerplexityOptions& options, std::string_view text) {
  const auto checkpoint = open_model(options.model, options.weights);
  const auto tokenizer = Tokenizer::open(options.model);
  if (!tokenizer) {
    throw UsageError(options.model +
                     " has no tokenizer; give a model with tokenizer.json, or a GGUF file");
  }
  std::vector<int32_t> ids;
  try {
    ids = tokenizer->encode(text);
  } catch (const std::invalid_argument& e) {
    throw UsageError(std::string("the text cannot be tokenized: ") + e.what());
  }
  return perplexity_of_ids(*checkpoint, options, tokenizer->prefix(), ids);
}

}  // namespace headrace
