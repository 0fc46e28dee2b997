// What a finished request says, before it is written as an OpenAI batch output line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/requests/request.h"

namespace headrace {

struct TokenLogprob {
  int token = 0;
  float logprob = 0.0f;
};

struct ChoiceResult {
  std::string text;
  std::vector<int> token_ids;  // generated ones, the end-of-sequence token included if it came
  std::string finish_reason;   // "stop" (end-of-sequence or stop string) or "length"
  // If logprobs were asked for: one per token of token_ids; alternatives best first.
  std::vector<TokenLogprob> logprobs;
  std::vector<std::vector<TokenLogprob>> alternatives;
};

struct RequestResult {
  std::string custom_id;
  uint64_t digest = 0;  // of its Request
  Endpoint endpoint = Endpoint::kCompletions;
  std::string model;
  int prompt_tokens = 0;
  std::vector<ChoiceResult> choices;
};

}  // namespace headrace
