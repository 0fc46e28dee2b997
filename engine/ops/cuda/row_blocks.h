// What a block of GPU threads does with a row: norms, activations, rotation, in the canonical
// arithmetic (ops/canonical.h), so that a row's bits are those of the CPU path.
//
// A block program is a template over its Block, so that tests run it on the CPU:
//   block.threads()            threads of the block
//   block.each_thread(f)       f(t) on every thread t; all are done when it returns
//   block.shared<T>(count)     memory of the block; the same calls in the same order on all threads
// Outside each_thread all threads do the same.
#pragma once

#include <cstdint>

#include "engine/both.h"
#include "engine/ops/canonical.h"

namespace headrace {

// The canonical sum: lane i adds up elements i, i + 16, ...; then the tree. fold(sum, i) adds
// element i.
template <typename Block, typename Fold>
HEADRACE_BOTH float lane_sum(Block& block, float* lanes, int64_t n, Fold fold) {
  block.each_thread([&](int t) {
    if (t >= kSumLanes) return;
    float sum = 0.0f;
    for (int64_t i = t; i < n; i += kSumLanes) sum = fold(sum, i);
    lanes[t] = sum;
  });
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    block.each_thread([&](int t) {
      if (t < half) lanes[t] += lanes[t + half];
    });
  }
  const float sum = lanes[0];
  block.each_thread([](int) {});  // all have read it before a lane is written again
  return sum;
}

// The row in the block's memory, which every lane then reads at once.
template <typename Block>
HEADRACE_BOTH const float* cached(Block& block, const float* x, int64_t n) {
  float* const row = block.template shared<float>(n);
  block.each_thread([&](int t) {
    for (int64_t i = t; i < n; i += block.threads()) row[i] = x[i];
  });
  return row;
}

constexpr int64_t norm_shared_floats(int64_t n) { return n + kSumLanes; }

// y = x / sqrt(mean(x^2) + eps) * weight. y may be x.
template <typename Block>
HEADRACE_BOTH void rms_norm_row(Block& block, const float* x, int64_t n, const float* weight,
                                float eps, float* y) {
  float* const lanes = block.template shared<float>(kSumLanes);
  const float* const row = cached(block, x, n);
  const float sum =
      lane_sum(block, lanes, n, [row](float s, int64_t i) { return std::fma(row[i], row[i], s); });
  const float r = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  block.each_thread([&](int t) {
    for (int64_t i = t; i < n; i += block.threads()) y[i] = row[i] * r * weight[i];
  });
}

// y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias. y may be x.
template <typename Block>
HEADRACE_BOTH void layer_norm_row(Block& block, const float* x, int64_t n, const float* weight,
                                  const float* bias, float eps, float* y) {
  float* const lanes = block.template shared<float>(kSumLanes);
  const float* const row = cached(block, x, n);
  const auto count = static_cast<float>(n);
  const float mean =
      lane_sum(block, lanes, n, [row](float s, int64_t i) { return s + row[i]; }) / count;
  const float squares = lane_sum(block, lanes, n, [row, mean](float s, int64_t i) {
    const float d = row[i] - mean;
    return std::fma(d, d, s);
  });
  const float r = 1.0f / std::sqrt(squares / count + eps);
  block.each_thread([&](int t) {
    for (int64_t i = t; i < n; i += block.threads()) {
      y[i] = std::fma((row[i] - mean) * r, weight[i], bias[i]);
    }
  });
}

// Elements, each by itself.

HEADRACE_BOTH inline float relu_of(float x) { return x > 0.0f ? x : 0.0f; }

HEADRACE_BOTH inline float silu_multiply_of(float gate, float up) {
  return gate / (1.0f + canonical_exp(-gate)) * up;
}

// Element i of the first half of a head and its partner in the second.
HEADRACE_BOTH inline void rotate_pair(float* head, int half, int i, float cos, float sin) {
  const float a = head[i], b = head[i + half];
  head[i] = std::fma(a, cos, -(b * sin));
  head[i + half] = std::fma(b, cos, a * sin);
}

}  // namespace headrace
