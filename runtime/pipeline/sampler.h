// Chooses tokens from logits, on the last stage. A GPU finds the best ones itself (Ops::find_best);
// whatever else a request asks for is done here, by the CPU, with the same bits on every machine: it
// wants one row of logits for each sequence, which the link brings in a fraction of a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/ops/cpu/kernels.h"
#include "engine/stage_engine.h"
#include "runtime/schedule/step_message.h"

namespace headrace {

// State per slot: the parameters of its sequence and, for the repetition penalty, which tokens it
// has seen. One thread admits and observes; then sample() may be called for different slots at
// once.
class Sampler {
 public:
  // `vocab_size`: rows of the head.
  Sampler(const Kernels& kernels, int slots, int64_t vocab_size);

  void admit(const Admission& admission);
  // Tokens of the slot's sequence, as a step brings them in: prompt chunks, but for what is taken
  // over from another slot, then generated ones.
  void observe(int slot, std::span<const int32_t> tokens);

  // The slot's token is the one with the largest logit of the model, and nothing more is told of
  // it.
  bool takes_best(int slot) const { return slots_[slot].admission.sampling.takes_best(); }
  // The token of such a slot.
  static SampledToken best(int slot, const BestToken& best);

  // The token that follows position `position`. `logits` [vocab_size] is overwritten.
  SampledToken sample(int slot, int64_t position, std::span<float> logits) const;

 private:
  struct Slot {
    Admission admission;
    std::vector<int32_t> seen;  // ascending and unique; kept only under a repetition penalty
  };

  static constexpr size_t kPiece = 4096;  // logits whose weights are summed in float

  void apply_bias(const Slot& slot, std::span<float> logits) const;
  double sum_exp(std::span<const float> logits, float shift) const;
  double piece_sum(std::span<const float> logits, size_t at, float shift) const;
  int draw(const Slot& slot, int64_t index, std::span<float> logits) const;
  int draw_from_all(double u, int best, std::span<const float> logits) const;
  int draw_filtered(const SamplingParams& sampling, double u, std::span<const float> logits) const;

  const Kernels& kernels_;
  int64_t vocab_size_;
  std::vector<Slot> slots_;
};

}  // namespace headrace
