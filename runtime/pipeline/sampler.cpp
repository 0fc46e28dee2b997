#include "runtime/pipeline/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/ops/canonical.h"
#include "runtime/pipeline/random.h"

namespace headrace {
namespace {

// Higher logit first, lower id among equals: a total order, so every machine sorts alike.
struct Better {
  std::span<const float> logits;
  bool operator()(int a, int b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

// The `count` best ids, best first.
std::vector<int> best(std::span<const float> logits, size_t count) {
  std::vector<int> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), ids.end(),
                    Better{logits});
  ids.resize(count);
  return ids;
}

}  // namespace

Sampler::Sampler(const Kernels& kernels, int slots, int64_t vocab_size)
    : kernels_(kernels), vocab_size_(vocab_size), slots_(slots) {}

void Sampler::admit(const Admission& admission) { slots_[admission.slot] = {admission, {}}; }

void Sampler::observe(int slot, std::span<const int32_t> tokens) {
  Slot& s = slots_[slot];
  if (s.admission.sampling.repetition_penalty == 1.0f) return;
  for (const int32_t token : tokens) {
    const auto at = std::lower_bound(s.seen.begin(), s.seen.end(), token);
    if (at == s.seen.end() || *at != token) s.seen.insert(at, token);
  }
}

SampledToken Sampler::sample(int slot, int64_t position, std::span<float> logits) const {
  const Slot& s = slots_[slot];
  const SamplingParams& sampling = s.admission.sampling;
  SampledToken result;
  result.slot = slot;

  const float max = logits[kernels_.argmax(logits.data(), vocab_size_)];
  if (!std::isfinite(max)) {
    result.finite = false;
    return result;
  }
  double log_sum = 0.0;
  std::vector<float> raw;  // of the alternatives and, below, of the chosen token
  if (sampling.top_logprobs) {
    log_sum = max + canonical_log(kernels_.sum_exp(logits.data(), max, vocab_size_));
    raw.assign(logits.begin(), logits.end());
    for (const int id : best(logits, static_cast<size_t>(*sampling.top_logprobs))) {
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

int Sampler::draw(const Slot& slot, int64_t index, std::span<float> logits) const {
  const SamplingParams& sampling = slot.admission.sampling;
  // The best logit becomes 0, so that no temperature, however small, overflows.
  const float max = logits[kernels_.argmax(logits.data(), vocab_size_)];
  for (float& logit : logits) logit = (logit - max) / sampling.temperature;
  const auto weight = [&](int id) { return static_cast<double>(canonical_exp(logits[id])); };
  const double u = uniform(sampling.seed, slot.admission.stream, static_cast<uint64_t>(index));

  // Walks candidates until their weights pass u * total; the last one catches rounding.
  const auto pick = [&](const std::vector<int>& candidates, double total) {
    double sum = 0.0;
    for (const int id : candidates) {
      sum += weight(id);
      if (sum > u * total) return id;
    }
    return candidates.back();
  };

  const bool filtered = sampling.top_k > 0 || sampling.top_p < 1.0f || sampling.min_p > 0.0f;
  if (!filtered) {
    std::vector<int> all(logits.size());
    std::iota(all.begin(), all.end(), 0);
    return pick(all, kernels_.sum_exp(logits.data(), 0.0f, vocab_size_));
  }

  // top_k, then top_p within it, then min_p: a prefix of the ids in order of weight. Without top_k
  // the prefix is sorted in growing pieces until it is long enough.
  const auto limit =
      sampling.top_k > 0 ? std::min<size_t>(sampling.top_k, logits.size()) : logits.size();
  for (size_t sorted = std::min<size_t>(limit, 256);; sorted = std::min(limit, sorted * 8)) {
    std::vector<int> ids = best(logits, sorted);
    double total = 0.0;
    if (sampling.top_k > 0) {
      for (const int id : ids) total += weight(id);
    } else {
      total = kernels_.sum_exp(logits.data(), 0.0f, vocab_size_);
    }
    if (sampling.top_k > 0 && sorted < limit) continue;
    double kept = 0.0;
    size_t count = 0;
    while (count < ids.size()) {
      const double w = weight(ids[count]);
      if (count > 0 && (kept >= sampling.top_p * total || w < sampling.min_p)) break;
      kept += w;
      ++count;
    }
    if (count == ids.size() && sorted < limit) continue;  // the cut may lie further down
    ids.resize(count);
    return pick(ids, kept);
  }
}

}  // namespace headrace
