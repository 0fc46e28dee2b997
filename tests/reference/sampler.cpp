#include "tests/reference/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "runtime/pipeline/random.h"

namespace headrace::reference {

Choice choose(const Admission& admission, std::span<const int32_t> seen,
              std::vector<float> logits) {
  const SamplingParams& sampling = admission.sampling;
  for (const auto& [id, bias] : sampling.logit_bias) logits[static_cast<size_t>(id)] += bias;
  const std::set<int32_t> distinct(seen.begin(), seen.end());
  for (const int32_t id : distinct) {
    float& logit = logits[static_cast<size_t>(id)];
    logit =
        logit < 0.0f ? logit * sampling.repetition_penalty : logit / sampling.repetition_penalty;
  }

  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto sort_by = [&](const std::vector<float>& values) {
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
  };
  sort_by(logits);
  Choice choice;
  choice.token = order.front();
  choice.candidates = 1;
  if (sampling.temperature == 0.0f) return choice;

  const float max = logits[static_cast<size_t>(order.front())];
  for (float& logit : logits) logit = (logit - max) / sampling.temperature;
  // Different logits may be equal now.
  std::iota(order.begin(), order.end(), 0);
  sort_by(logits);
  const auto weight = [&](int id) {
    return std::exp(static_cast<double>(logits[static_cast<size_t>(id)]));
  };
  const bool filtered = sampling.top_k > 0 || sampling.top_p < 1.0f || sampling.min_p > 0.0f;
  if (!filtered) std::sort(order.begin(), order.end());  // drawn in order of ids
  if (sampling.top_k > 0 && order.size() > static_cast<size_t>(sampling.top_k)) {
    order.resize(static_cast<size_t>(sampling.top_k));
  }

  const auto near = [&](double distance) {
    choice.margin = std::min(choice.margin, std::abs(distance));
  };
  double total = 0.0;
  for (const int id : order) total += weight(id);
  if (filtered) {
    double kept = 0.0;
    size_t count = 0;
    for (const int id : order) {
      if (count > 0 && sampling.top_p < 1.0f) {
        near((kept - sampling.top_p * total) / total);
        if (kept >= sampling.top_p * total) break;
      }
      if (count > 0 && sampling.min_p > 0.0f) {
        near((weight(id) - sampling.min_p) / sampling.min_p);
        if (weight(id) < sampling.min_p) break;
      }
      kept += weight(id);
      ++count;
    }
    order.resize(count);
    total = kept;
  }
  choice.candidates = order.size();

  const auto index =
      static_cast<uint64_t>(seen.size()) - static_cast<uint64_t>(admission.prompt_tokens);
  const double u = uniform(sampling.seed, admission.stream, index);
  double sum = 0.0;
  choice.token = order.back();
  for (const int id : order) {
    near((sum - u * total) / total);
    sum += weight(id);
    if (sum > u * total) {
      near((sum - u * total) / total);
      choice.token = id;
      break;
    }
  }
  return choice;
}

std::vector<double> log_softmax(std::span<const float> logits) {
  double max = -std::numeric_limits<double>::infinity();
  for (const float logit : logits) max = std::max(max, static_cast<double>(logit));
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - max);
  std::vector<double> result;
  for (const float logit : logits) result.push_back(logit - max - std::log(sum));
  return result;
}

}  // namespace headrace::reference
