// What the coordinator tells every stage about a step, and what the last stage answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/requests/request.h"
#include "runtime/results/result.h"

namespace headrace {

// One sequence's part of a step: `rows` tokens at consecutive positions. Rows of all items lie one
// after the other in the step's ragged batch.
struct StepItem {
  int32_t slot = 0;
  int32_t rows = 0;
  int64_t first_position = 0;
  bool sample = false;  // the last row's logits give a new token
};

// A slot gives its KV pages back or, where `from` is one, has the first `pages` pages of that slot
// from now on: it has fewer, and no token past them.
struct KvChange {
  int32_t slot = 0;
  int32_t from = -1;
  int32_t pages = 0;
};

// A sequence takes a slot: what the last stage needs to sample for it.
struct Admission {
  int32_t slot = 0;
  int32_t prompt_tokens = 0;
  // Identifies the random stream beside the seed: hash of custom_id and choice.
  uint64_t stream = 0;
  SamplingParams sampling;
  // Under a repetition penalty, since steps do not bring tokens whose pages are taken over.
  std::vector<int32_t> prompt = {};
};

// Travels from stage to stage ahead of the hidden states. On arrival a stage first makes the
// changes, one after the other, then admits, then computes.
struct StepMessage {
  uint64_t step = 0;
  bool stop = false;  // the run is over: pass on and leave
  std::vector<KvChange> changes;
  std::vector<Admission> admissions;
  std::vector<StepItem> items;
  std::vector<int32_t> tokens;  // one per row
  int64_t idle_ns = 0;          // rank 0 had nothing to do for so long before it made this step

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

struct SampledToken {
  int32_t slot = 0;
  bool finite = true;  // false: the model's logits were not finite; the token means nothing
  TokenLogprob chosen;
  std::vector<TokenLogprob> alternatives;  // best first, if asked for
};

// The ring's way back: sampled tokens of a step, in the order of its items.
struct StepResult {
  uint64_t step = 0;
  std::vector<SampledToken> tokens;
};

// The wire form: fields in order, little-endian, vectors with a 32-bit count. Both ends run the
// same version of headrace (checked at start). Reading throws std::runtime_error on a malformed
// message.
std::vector<std::byte> encode(const StepMessage& message);
StepMessage decode_step_message(const std::vector<std::byte>& bytes);
std::vector<std::byte> encode(const StepResult& result);
StepResult decode_step_result(const std::vector<std::byte>& bytes);

}  // namespace headrace
