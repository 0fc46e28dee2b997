// Choosing a token as plainly as it can be written: sort everything, weights and sums in double.
// Source of the rules: runtime/requests/request.h (SamplingParams).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/schedule/step_message.h"

namespace headrace::reference {

struct Choice {
  int token = 0;
  // How far the nearest other decision was (a cut of the candidates or a neighbour of the chosen
  // token), as a part of the whole weight. Float arithmetic may differ where this is tiny.
  double margin = 1.0;
  size_t candidates = 0;  // after the filters
};

// The token of a sequence that has `seen` all its tokens so far, prompt and generated.
Choice choose(const Admission& admission, std::span<const int32_t> seen, std::vector<float> logits);

// log_softmax in double.
std::vector<double> log_softmax(std::span<const float> logits);

}  // namespace headrace::reference
