// How well a model predicts a text, as one figure for comparing formats of weights and KV cache.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/quantized_checkpoint.h"
#include "engine/ops/cpu/kernels.h"

namespace headrace {

struct PerplexityOptions {
  std::string model;
  int window = 512;          // tokens a prediction can look back on, at most the model's positions
  int threads = 0;           // 0: all cores this process may use
  uint64_t host_memory = 0;  // bytes; 0: 90 % of what is available
  WeightFormat weights = WeightFormat::kNative;
  KvFormat kv_format = KvFormat::kF16;
  std::string target = "auto";
  bool int8 = false;  // linear layers in integers (engine/ops/int8.h)
};

struct Perplexity {
  int64_t tokens = 0;  // predicted ones
  int64_t windows = 0;
  double nats = 0.0;  // sum over them of -log(probability)

  double value() const { return std::exp(nats / static_cast<double>(tokens)); }
};

// Cuts the text's tokens into consecutive windows, each a sequence of its own; the tokenizer's
// prefix (BOS), where the model has one, opens every window. Every token but a window's first is
// predicted from those before it in the window. The same bits for any number of threads and any
// target. Throws UsageError (no tokenizer, text too short or not UTF-8, window out of range),
// ModelError, IoError, DoesNotFit, ResourceMissing.
Perplexity measure_perplexity(const PerplexityOptions& options, std::string_view text);

// The same of token ids, with the model already open; options.model and options.weights are not
// looked at.
Perplexity perplexity_of_ids(const Checkpoint& checkpoint, const PerplexityOptions& options,
                             const std::vector<int32_t>& prefix, const std::vector<int32_t>& ids);

}  // namespace headrace
