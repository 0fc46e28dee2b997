// One line of a batch file, parsed and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace headrace {

// How tokens are chosen. Order of application: logit_bias, repetition_penalty, then for
// temperature > 0: temperature, top_k, top_p, min_p (the order of Hugging Face transformers).
// Greedy (temperature 0) takes the highest logit, the lowest id among equals.
struct SamplingParams {
  float temperature = 0.0f;
  float top_p = 1.0f;
  int top_k = 0;  // 0: off
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  uint64_t seed = 0;
  std::vector<std::pair<int, float>> logit_bias;  // token id, added to its logit; ascending ids
  // Alternatives to report per token, 0..20; empty: no logprobs at all. Logprobs are the
  // log-softmax of the model's own logits, before any of the steps above.
  std::optional<int> top_logprobs;

  // The token is the one with the largest logit, and nothing more is told of it.
  bool takes_best() const {
    return !(temperature > 0.0f) && repetition_penalty == 1.0f && logit_bias.empty() &&
           !top_logprobs;
  }
  bool operator==(const SamplingParams&) const = default;
};

enum class Endpoint { kCompletions, kChatCompletions };

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

using Prompt = std::variant<std::string, std::vector<int>, std::vector<ChatMessage>>;

struct Request {
  std::string custom_id;  // unique in the file; "line-<n>" where the line has none
  uint64_t digest = 0;    // of what was asked, see line_digest()
  Endpoint endpoint = Endpoint::kCompletions;
  Prompt prompt;
  std::string model;  // as the line says, echoed in the result; may be empty
  int max_tokens = 0;
  int n = 1;  // choices
  std::vector<std::string> stop;
  bool ignore_eos = false;
  SamplingParams sampling;
};

// A line that cannot be served: becomes an error record, the rest of the file goes on.
struct BadLine {
  std::string custom_id;  // "line-<n>" where the line has none or cannot be parsed
  std::string code;       // "invalid_json", "invalid_request", "duplicate_custom_id", ...
  std::string message;    // names the line number and the field, and the cure
  uint64_t digest = 0;    // as of a Request
};

// What a line gets when it does not say otherwise (command line defaults).
struct RequestDefaults {
  int max_tokens = 128;
  SamplingParams sampling;
  bool ignore_eos = false;
};

}  // namespace headrace
