// The canonical arithmetic of the CPU path: what every kernel must compute, bit for bit, whatever
// the batch, the number of threads and the vector width. tests/reference holds the plain
// definitions.
//
//  linear     y[m][n] = sum over k of x[m][k]*w[n][k]: one float32 accumulator that starts at +0, k
//             ascending, one fused multiply-add per k; then the bias is added.
//  weights    w = d*q (+ offset), a float32 multiplication and then an addition, each rounded.
//  sums       over a vector: element i goes to lane i mod 16, lanes start at +0, i ascending; the
//             lanes are then added as a tree: l[i] += l[i+8], l[i] += l[i+4], +2, +1.
//  norms      r = 1 / sqrt(sum / n + eps); RMS: (x*r)*weight, sum of x^2 by fused multiply-adds;
//             layer: d = x - mean, sum of d^2 likewise, fused (d*r)*weight + bias.
//  rotation   (a, b) -> (a*cos - b*sin, b*cos + a*sin): the product with sin rounded, then fused.
//  int8       linear layers with --math int8: see int8.h.
//  relu       x > 0 ? x : +0, so NaN gives +0.
//  attention  score = dot(q, k) (head dimension ascending, fused multiply-add) * scale; pages of 16
//             tokens ascending with an online softmax, see attention.h.
//  exp        the polynomial below. Division and square root are IEEE.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "engine/both.h"

namespace headrace {

inline constexpr int kSumLanes = 16;
inline constexpr int kPageTokens = 16;  // tokens per KV page
inline constexpr int kPanelRows = 32;   // outputs (rows of W) per weight panel

// exp(x) for float32: n = round(x*log2(e)), r = x - n*ln2 in two fused steps, a polynomial of
// degree 7 in r (Taylor coefficients; |r| <= 0.3466, error below 1 ulp), times 2^n. x is first
// clamped to [kExpMin, kExpMax] so that the result is a normal number. NaN gives NaN.
inline constexpr float kExpMin = -87.0f;
inline constexpr float kExpMax = 88.0f;
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2Hi = 0.693145752f;
inline constexpr float kLn2Lo = 1.42860677e-6f;
inline constexpr float kExpC2 = 0.5f;
inline constexpr float kExpC3 = 0.166666667f;
inline constexpr float kExpC4 = 0.0416666667f;
inline constexpr float kExpC5 = 0.00833333333f;
inline constexpr float kExpC6 = 0.00138888889f;
inline constexpr float kExpC7 = 0.000198412698f;

HEADRACE_BOTH inline float canonical_exp(float x) {
  if (std::isnan(x)) return x;
  x = x < kExpMin ? kExpMin : x;
  x = x > kExpMax ? kExpMax : x;
  const float n = std::nearbyint(x * kLog2E);
  float r = std::fma(-n, kLn2Hi, x);
  r = std::fma(-n, kLn2Lo, r);
  float p = kExpC7;
  p = std::fma(p, r, kExpC6);
  p = std::fma(p, r, kExpC5);
  p = std::fma(p, r, kExpC4);
  p = std::fma(p, r, kExpC3);
  p = std::fma(p, r, kExpC2);
  const float y = std::fma(p, r * r, r) + 1.0f;
  return y * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

// Natural logarithm in double: 2^e * m with m in [sqrt(1/2), sqrt(2)), then the series of
// atanh((m-1)/(m+1)). x > 0 and normal. Relative error below 1e-15.
inline double canonical_log(double x) {
  int e;
  double m = std::frexp(x, &e);
  if (m < 0.70710678118654752) {
    m *= 2.0;
    --e;
  }
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = 0.0;
  for (int i = 23; i >= 1; i -= 2) p = p * z + 1.0 / i;
  return e * 0.69314718055994531 + 2.0 * s * p;
}

}  // namespace headrace
