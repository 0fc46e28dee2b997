// Group-wise asymmetric quantisation to 8 or 4 bits, for weights and for the KV cache.
//
// A group of up to 64 consecutive floats becomes an f16 scale d, an f16 minimum m and one code
// q per element in 0 .. levels (255 or 15); the element is then d*q + m, a float32 multiplication
// and an addition, each rounded (the formula of ggml's Q4_1). The rule, with lo and hi the least
// and the largest element, all in float32:
//   m = lo rounded to f16, at most 65504 in magnitude; never -0
//   d = (hi - m) / levels rounded to f16, at most 65504, 0 if hi <= m; the next f16 above it where
//       (hi - m) / d would still exceed levels + 1/2, as it may for subnormal d
//   q = (x - m) / d rounded to nearest, ties to even, clamped to 0 .. levels; 0 if d is 0
// So a constant group is exact to f16, and an element is off by at most d/2 and the rounding of m
// as long as the group lies within +-65504. A group with a NaN becomes NaN as a whole.
//
// As stored ("G8", "G4" in dtype.h): d, m, then 64 bytes, element by element; or 32 bytes, byte j
// holding elements j (low four bits) and j + 32.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/both.h"
#include "engine/half.h"

namespace headrace {

inline constexpr int kQuantGroup = 64;  // elements

struct GroupScale {
  uint16_t scale;    // f16
  uint16_t minimum;  // f16
};

namespace group_quant_detail {

inline constexpr uint16_t kF16MaxBits = 0x7BFF;
inline constexpr uint16_t kF16Nan = 0x7E00;

HEADRACE_BOTH constexpr uint16_t minimum_of(float lo) {
  const uint16_t bits = f32_to_f16(saturated_to_f16(lo));
  return bits == 0x8000 ? uint16_t{0} : bits;
}

HEADRACE_BOTH constexpr uint16_t scale_of(float range, float levels) {
  if (!(range > 0.0f)) return 0;
  const uint16_t bits = f32_to_f16(saturated_to_f16(range / levels));
  const bool reaches = range / f16_to_f32(bits) <= levels + 0.5f;
  return reaches || bits == kF16MaxBits ? bits : static_cast<uint16_t>(bits + 1);
}

}  // namespace group_quant_detail

// codes[count] receives the codes. x holds `count` floats, 1 to 64, none infinite. `levels` is 255
// or 15.
HEADRACE_BOTH inline GroupScale quantize_group(const float* x, int count, int levels,
                                               uint8_t* codes) {
  using namespace group_quant_detail;
  float lo = x[0], hi = x[0];
  bool broken = false;
  for (int i = 0; i < count; ++i) {
    lo = x[i] < lo ? x[i] : lo;
    hi = x[i] > hi ? x[i] : hi;
    broken |= x[i] != x[i];
    codes[i] = 0;
  }
  if (broken) return {0, kF16Nan};

  const auto most = static_cast<float>(levels);
  const uint16_t minimum = minimum_of(lo);
  const float m = f16_to_f32(minimum);
  const uint16_t scale = scale_of(hi - m, most);
  if (scale == 0) return {scale, minimum};
  const float d = f16_to_f32(scale);
  for (int i = 0; i < count; ++i) {
    codes[i] = static_cast<uint8_t>(std::nearbyint(std::clamp((x[i] - m) / d, 0.0f, most)));
  }
  return {scale, minimum};
}

// One stored block of 64 elements: 68 bytes (8 bits) or 36 bytes (4 bits) to `block`.
void quantize_block(std::span<const float, kQuantGroup> x, int bits, std::byte* block);

}  // namespace headrace
