// Conversions between float32 and the two 16-bit formats, in portable bit code: the same result on
// every machine. Rounding is to nearest, ties to even; NaN stays a (quiet) NaN of the same sign.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/both.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace headrace {

inline constexpr float kF16Max = 65504.0f;  // the largest finite binary16

HEADRACE_BOTH constexpr float saturated_to_f16(float value) {
  const float most = kF16Max;
  return std::clamp(value, -most, most);
}

// IEEE binary16 to float32, exact.
constexpr float f16_to_f32(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  if (exponent == 31) {
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7F800000u | quiet | (mantissa << 13));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// float32 to IEEE binary16; magnitudes from 65520 on become infinite.
constexpr uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t half = 0;
  if (magnitude >= 0x38800000u && magnitude < 0x47800000u) {  // [2^-14, 65536)
    // Rounding may carry into the exponent, up to infinity, which is what it should do.
    half = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  } else if (magnitude > 0x7F800000u) {
    half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  } else if (magnitude >= 0x47800000u) {
    half = 0x7C00u;
  } else if (magnitude >= 0x33000000u) {  // [2^-25, 2^-14): a multiple of 2^-24
    const uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
    const uint32_t shift = 126u - (magnitude >> 23);
    const uint32_t rest = mantissa & ((1u << shift) - 1u);
    const uint32_t tie = 1u << (shift - 1u);
    half = mantissa >> shift;
    if (rest > tie || (rest == tie && (half & 1u) != 0)) ++half;
  }
  return static_cast<uint16_t>(sign | half);
}

// bfloat16 (the upper half of a float32) to float32, exact.
constexpr float bf16_to_f32(uint16_t bf16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16);
}

// float32 to bfloat16.
constexpr uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Bytes at any address.
HEADRACE_BOTH inline uint16_t u16_at(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}
HEADRACE_BOTH inline float f16_at(const std::byte* p) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(u16_at(p)));
#else
  return f16_to_f32(u16_at(p));
#endif
}

// A number in binary16, as tensor cores take it.
struct Half {
  uint16_t bits;
};

// Saturates at +-65504; NaN stays one.
HEADRACE_BOTH inline Half to_half(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(saturated_to_f16(value)))};
#else
  return {f32_to_f16(saturated_to_f16(value))};
#endif
}

// f16_to_f32(to_half(value).bits) without branches, for loops over many.
inline float rounded_to_f16(float value) {
  const float v = saturated_to_f16(value), magnitude = std::fabs(v);
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0xFFFu + ((bits >> 13) & 1u)) & ~0x1FFFu;
  // Below 2^-14 a multiple of 2^-24, which is what the sum with 0.75 has room for.
  const float tiny = std::copysign((magnitude + 0.75f) - 0.75f, v);
  const float finite = magnitude < 0x1p-14f ? tiny : std::bit_cast<float>(rounded);
  // Of a NaN the payload that f16 has room for stays, and it becomes quiet.
  const float nan = std::bit_cast<float>((bits & ~0x1FFFu) | 0x400000u);
  return v == v ? finite : nan;
}

}  // namespace headrace
