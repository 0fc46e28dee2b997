#include "tests/reference/canonical.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "tests/reference/quantize.h"

namespace headrace::reference {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Folds element i into lane i mod 16 and adds the lanes up as a tree.
float fold_lanes(int64_t n, const std::function<float(float lane, int64_t i)>& fold) {
  std::vector<float> lanes(16, 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    float& lane = lanes[static_cast<size_t>(i % 16)];
    lane = fold(lane, i);
  }
  while (lanes.size() > 1) {
    const size_t half = lanes.size() / 2;
    std::vector<float> pairs;
    for (size_t i = 0; i < half; ++i) pairs.push_back(lanes[i] + lanes[i + half]);
    lanes = pairs;
  }
  return lanes.front();
}

}  // namespace

void linear(const float* x, int64_t rows, int64_t cols, const float* w, int64_t outputs,
            const float* bias, float* y) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < outputs; ++n) {
      float total = 0.0f;
      for (int64_t k = 0; k < cols; ++k) total = std::fma(x[m * cols + k], w[n * cols + k], total);
      y[m * outputs + n] = bias ? total + bias[n] : total;
    }
  }
}

float exp(float x) {
  if (std::isnan(x)) return x;
  x = std::clamp(x, -87.0f, 88.0f);
  // ln 2 as a float of few bits, so that n * high is exact, and the rest.
  constexpr double kLn2 = 0.693147180559945309417;
  constexpr float kHigh = 0x1.62e4p-1f;
  constexpr auto kLow = static_cast<float>(kLn2 - kHigh);
  const float n = std::nearbyint(x * 1.44269504088896341f);
  const float r = std::fma(-n, kLow, std::fma(-n, kHigh, x));
  // 1 + r + r^2 * (1/2! + r/3! + ... + r^5/7!)
  float p = 1.0f / 5040.0f;
  for (const float factorial : {720.0f, 120.0f, 24.0f, 6.0f, 2.0f}) {
    p = std::fma(p, r, 1.0f / factorial);
  }
  const float r2 = r * r;
  return std::ldexp(std::fma(p, r2, r) + 1.0f, static_cast<int>(n));
}

float sum(std::span<const float> x) {
  return fold_lanes(std::ssize(x), [&](float lane, int64_t i) { return lane + x[i]; });
}

float sum_exp(std::span<const float> x, float shift) {
  return fold_lanes(std::ssize(x), [&](float lane, int64_t i) { return lane + exp(x[i] - shift); });
}

int64_t argmax(std::span<const float> x) {
  const auto key = [](float v) { return std::isnan(v) ? -kInfinity : v; };
  int64_t best = 0;
  for (int64_t i = 1; i < std::ssize(x); ++i) {
    if (key(x[i]) > key(x[best])) best = i;
  }
  return best;
}

std::vector<float> rms_norm(std::span<const float> x, std::span<const float> weight, float eps) {
  const float squares =
      fold_lanes(std::ssize(x), [&](float lane, int64_t i) { return std::fma(x[i], x[i], lane); });
  const float r = 1.0f / std::sqrt(squares / static_cast<float>(x.size()) + eps);
  std::vector<float> y;
  for (size_t i = 0; i < x.size(); ++i) {
    const float unit = x[i] * r;
    y.push_back(unit * weight[i]);
  }
  return y;
}

std::vector<float> layer_norm(std::span<const float> x, std::span<const float> weight,
                              std::span<const float> bias, float eps) {
  const auto count = static_cast<float>(x.size());
  const float mean = sum(x) / count;
  const float squares = fold_lanes(std::ssize(x), [&](float lane, int64_t i) {
    const float deviation = x[i] - mean;
    return std::fma(deviation, deviation, lane);
  });
  const float r = 1.0f / std::sqrt(squares / count + eps);
  std::vector<float> y;
  for (size_t i = 0; i < x.size(); ++i) {
    const float unit = (x[i] - mean) * r;
    y.push_back(std::fma(unit, weight[i], bias[i]));
  }
  return y;
}

float relu(float x) { return x > 0.0f ? x : 0.0f; }

float silu(float x) {
  const float denominator = 1.0f + exp(-x);
  return x / denominator;
}

void rotate(std::span<float> v, std::span<const float> cos, std::span<const float> sin) {
  const size_t half = v.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const float a = v[i], b = v[i + half];
    const float b_sin = b * sin[i], a_sin = a * sin[i];
    v[i] = std::fma(a, cos[i], -b_sin);
    v[i + half] = std::fma(b, cos[i], a_sin);
  }
}

void store(KvFormat format, std::span<float> head) {
  if (format == KvFormat::kF32) return;
  constexpr float kLargest = 65504.0f;
  for (float& value : head) {
    if (!std::isnan(value)) value = std::clamp(value, -kLargest, kLargest);
    // The compiler's own half type: rounds to nearest even, subnormals included.
    if (format == KvFormat::kF16) value = static_cast<float>(static_cast<_Float16>(value));
  }
  if (format == KvFormat::kF16) return;
  for (size_t first = 0; first < head.size(); first += 64) {
    const std::span part = head.subspan(first, std::min<size_t>(64, head.size() - first));
    const Group group = quantize(part, format == KvFormat::kQ8 ? 255 : 15);
    for (size_t i = 0; i < part.size(); ++i) part[i] = group.value(i);
  }
}

std::vector<float> attention(std::span<const float> q, const float* k, const float* v,
                             int64_t stride, int64_t position, float scale) {
  std::vector<float> o(q.size(), 0.0f);
  float m = -kInfinity, l = 0.0f;
  for (int64_t first = 0; first <= position; first += 16) {
    const int64_t tokens = std::min<int64_t>(16, position + 1 - first);
    std::vector<float> s;
    for (int64_t t = 0; t < tokens; ++t) {
      float dot = 0.0f;
      for (size_t d = 0; d < q.size(); ++d) dot = std::fma(q[d], k[(first + t) * stride + d], dot);
      s.push_back(dot * scale);
    }
    float new_m = m;
    for (const float score : s) {
      if (score > new_m) new_m = score;
    }
    const float c = first == 0 ? 1.0f : exp(m - new_m);
    std::vector<float> p;
    for (const float score : s) p.push_back(exp(score - new_m));
    l = std::fma(l, c, sum(p));
    m = new_m;
    for (size_t d = 0; d < q.size(); ++d) {
      o[d] *= c;
      for (int64_t t = 0; t < tokens; ++t) {
        o[d] = std::fma(p[static_cast<size_t>(t)], v[(first + t) * stride + d], o[d]);
      }
    }
  }
  for (float& value : o) value /= l;
  return o;
}

}  // namespace headrace::reference
