#include "runtime/pipeline/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/ops/canonical.h"
#include "runtime/pipeline/random.h"

namespace headrace {
namespace {

// The ids in order: higher logit first, lower id among equals. A total order, so every machine
// sorts alike; sorts only as far as it is read.
class Ranking {
 public:
  explicit Ranking(std::span<const float> logits) : keys_(logits.size()) {
    for (size_t id = 0; id < keys_.size(); ++id) keys_[id] = key(logits[id]) << 32 | id;
  }
  size_t size() const { return keys_.size(); }
  int operator[](size_t rank) {
    while (rank >= sorted_) sort_more();
    return static_cast<int>(keys_[rank] & 0xFFFFFFFF);
  }

 private:
  // Ascends as the logit descends.
  static uint64_t key(float logit) {
    const auto bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0 and 0 are equal
    return bits >> 31 ? bits : ~bits & 0x7FFFFFFF;
  }

  void sort_more() {
    const size_t next = std::min(std::max<size_t>(256, 8 * sorted_), keys_.size());
    const auto at = [&](size_t rank) { return keys_.begin() + static_cast<std::ptrdiff_t>(rank); };
    if (next < keys_.size()) std::nth_element(at(sorted_), at(next), keys_.end());
    std::sort(at(sorted_), at(next));
    sorted_ = next;
  }

  std::vector<uint64_t> keys_;
  size_t sorted_ = 0;
};

// A token's part of the whole, for logits whose largest is 0: none below what exp can tell from 0,
// so that an impossible token is never drawn.
double weight(float logit) { return logit <= kExpMin ? 0.0 : canonical_exp(logit); }

}  // namespace

Sampler::Sampler(const Kernels& kernels, int slots, int64_t vocab_size)
    : kernels_(kernels), vocab_size_(vocab_size), slots_(slots) {}

void Sampler::admit(const Admission& admission) {
  Slot& slot = slots_[admission.slot] = {admission, {}};
  slot.seen = std::exchange(slot.admission.prompt, {});
  std::ranges::sort(slot.seen);
  slot.seen.erase(std::ranges::unique(slot.seen).begin(), slot.seen.end());
}

void Sampler::observe(int slot, std::span<const int32_t> tokens) {
  Slot& s = slots_[slot];
  if (s.admission.sampling.repetition_penalty == 1.0f) return;
  for (const int32_t token : tokens) {
    const auto at = std::lower_bound(s.seen.begin(), s.seen.end(), token);
    if (at == s.seen.end() || *at != token) s.seen.insert(at, token);
  }
}

SampledToken Sampler::best(int slot, const BestToken& best) {
  SampledToken result;
  result.slot = slot;
  result.finite = std::isfinite(best.logit) && !best.has_nan;
  if (result.finite) result.chosen.token = best.token;
  return result;
}

SampledToken Sampler::sample(int slot, int64_t position, std::span<float> logits) const {
  const Slot& s = slots_[slot];
  const SamplingParams& sampling = s.admission.sampling;
  SampledToken result;
  result.slot = slot;

  const float max = logits[kernels_.argmax(logits.data(), vocab_size_)];
  const double sum = std::isfinite(max) ? sum_exp(logits, max) : 0.0;
  if (!std::isfinite(max) || std::isnan(sum)) {
    result.finite = false;
    return result;
  }
  double log_sum = 0.0;
  std::vector<float> raw;
  if (sampling.top_logprobs) {
    log_sum = max + canonical_log(sum);
    raw.assign(logits.begin(), logits.end());
    Ranking ranking(logits);
    const auto count = std::min(static_cast<size_t>(*sampling.top_logprobs), ranking.size());
    for (size_t rank = 0; rank < count; ++rank) {
      const int id = ranking[rank];
      result.alternatives.push_back({id, static_cast<float>(logits[id] - log_sum)});
    }
  }

  apply_bias(s, logits);
  const int64_t index = position + 1 - s.admission.prompt_tokens;
  result.chosen.token = sampling.temperature > 0.0f
                            ? draw(s, index, logits)
                            : static_cast<int>(kernels_.argmax(logits.data(), vocab_size_));
  if (sampling.top_logprobs) {
    result.chosen.logprob = static_cast<float>(raw[result.chosen.token] - log_sum);
  }
  return result;
}

void Sampler::apply_bias(const Slot& slot, std::span<float> logits) const {
  const SamplingParams& sampling = slot.admission.sampling;
  for (const auto& [id, bias] : sampling.logit_bias) {
    if (id >= 0 && id < vocab_size_) logits[id] += bias;
  }
  const float penalty = sampling.repetition_penalty;
  for (const int32_t id : slot.seen)
    logits[id] = logits[id] > 0.0f ? logits[id] / penalty : logits[id] * penalty;
}

// In pieces: a float sum over a whole vocabulary would be off by some 1e-6.
double Sampler::sum_exp(std::span<const float> logits, float shift) const {
  double sum = 0.0;
  for (size_t at = 0; at < logits.size(); at += kPiece) sum += piece_sum(logits, at, shift);
  return sum;
}

double Sampler::piece_sum(std::span<const float> logits, size_t at, float shift) const {
  const size_t count = std::min(kPiece, logits.size() - at);
  return kernels_.sum_exp(logits.data() + at, shift, static_cast<int64_t>(count));
}

int Sampler::draw(const Slot& slot, int64_t index, std::span<float> logits) const {
  const SamplingParams& sampling = slot.admission.sampling;
  const auto best = static_cast<int>(kernels_.argmax(logits.data(), vocab_size_));
  const float max = logits[best];
  if (!std::isfinite(max)) return best;  // a penalty has made it overflow
  // The best logit becomes 0, so that no temperature, however small, overflows.
  for (float& logit : logits) logit = (logit - max) / sampling.temperature;
  const double u = uniform(sampling.seed, slot.admission.stream, static_cast<uint64_t>(index));
  const bool filtered = sampling.top_k > 0 || sampling.top_p < 1.0f || sampling.min_p > 0.0f;
  return filtered ? draw_filtered(sampling, u, logits) : draw_from_all(u, best, logits);
}

// Walks the ids until their weights pass u of the whole.
int Sampler::draw_from_all(double u, int best, std::span<const float> logits) const {
  const double target = u * sum_exp(logits, 0.0f);
  double sum = 0.0;
  for (size_t at = 0; at < logits.size(); at += kPiece) {
    const double next = sum + piece_sum(logits, at, 0.0f);
    if (next <= target) {
      sum = next;
      continue;
    }
    int chosen = best;
    for (size_t id = at; id < std::min(at + kPiece, logits.size()); ++id) {
      const double w = weight(logits[id]);
      sum += w;
      if (w > 0.0) chosen = static_cast<int>(id);  // where the piece's sum was rounded up
      if (sum > target) break;
    }
    return chosen;
  }
  return best;
}

// top_k, then top_p within it, then min_p: what is left is a prefix of the ids in order of weight.
int Sampler::draw_filtered(const SamplingParams& sampling, double u,
                           std::span<const float> logits) const {
  Ranking ranking(logits);
  const size_t limit = sampling.top_k > 0
                           ? std::min(static_cast<size_t>(sampling.top_k), ranking.size())
                           : ranking.size();
  const auto weight_at = [&](size_t rank) { return weight(logits[ranking[rank]]); };
  double enough = std::numeric_limits<double>::infinity();
  if (sampling.top_p < 1.0f) {
    double total = 0.0;
    if (limit == ranking.size()) {
      total = sum_exp(logits, 0.0f);
    } else {
      for (size_t rank = 0; rank < limit; ++rank) total += weight_at(rank);
    }
    enough = sampling.top_p * total;
  }
  double kept = weight_at(0);
  size_t count = 1;
  for (; count < limit && kept < enough; ++count) {
    const double w = weight_at(count);
    if (w < sampling.min_p) break;
    kept += w;
  }
  double sum = 0.0;
  for (size_t rank = 0; rank < count; ++rank) {
    sum += weight_at(rank);
    if (sum > u * kept) return ranking[rank];
  }
  return ranking[count - 1];
}

}  // namespace headrace
