// What the vector targets share: included once per Highway target by the vector*.cpp, after
// highway.h.

#if defined(HEADRACE_ENGINE_OPS_CPU_VECTOR_COMMON_H) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADRACE_ENGINE_OPS_CPU_VECTOR_COMMON_H
#undef HEADRACE_ENGINE_OPS_CPU_VECTOR_COMMON_H
#else
#define HEADRACE_ENGINE_OPS_CPU_VECTOR_COMMON_H
#endif

#include "engine/ops/cpu/kernels.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace headrace::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using I = hn::RebindToSigned<F>;
using Bytes = hn::FixedTag<uint8_t, 16>;
using Words = hn::FixedTag<uint32_t, 4>;
using V = hn::Vec<F>;
using B = hn::Vec<Bytes>;

inline constexpr F kF;
inline constexpr int kL = static_cast<int>(hn::MaxLanes(kF));  // 16 or 8
inline constexpr int kHalfV = 16 / kL;                         // vectors per 16 rows or tokens

inline V load_f16(const void* p) {
  const hn::Rebind<hwy::float16_t, F> d16;
  return hn::PromoteTo(kF, hn::LoadU(d16, static_cast<const hwy::float16_t*>(p)));
}

// 16 bytes as float, unsigned or signed.
template <bool kSigned>
void to_float(B bytes, V* out) {
  using Element = std::conditional_t<kSigned, int8_t, uint8_t>;
  const hn::FixedTag<Element, 16> d;
  const auto v = hn::BitCast(d, bytes);
  if constexpr (kL == 16) {
    out[0] = hn::ConvertTo(kF, hn::PromoteTo(I(), v));
  } else {
    const hn::Half<decltype(d)> half;
    out[0] = hn::ConvertTo(kF, hn::PromoteTo(I(), hn::LowerHalf(half, v)));
    out[kHalfV - 1] = hn::ConvertTo(kF, hn::PromoteTo(I(), hn::UpperHalf(half, v)));
  }
}

// Bits [shift, shift + bits) of each byte, moved to bit `to`.
template <int kBits, int kTo>
B field(B plane, int shift) {
  const Words words;
  const auto mask = hn::Set(words, ((1u << kBits) - 1) * 0x01010101u);
  const auto v = hn::And(hn::ShiftRightSame(hn::BitCast(words, plane), shift), mask);
  return hn::BitCast(Bytes(), hn::ShiftLeft<kTo>(v));
}

// ops/canonical.h states it.
inline V exp(V x) {
  // Of a NaN and a number, x86 takes the second operand: a NaN stays.
  x = hn::Max(hn::Set(kF, kExpMin), x);
  x = hn::Min(hn::Set(kF, kExpMax), x);
  const V n = hn::Round(hn::Mul(x, hn::Set(kF, kLog2E)));
  V r = hn::NegMulAdd(n, hn::Set(kF, kLn2Hi), x);
  r = hn::NegMulAdd(n, hn::Set(kF, kLn2Lo), r);
  V p = hn::Set(kF, kExpC7);
  p = hn::MulAdd(p, r, hn::Set(kF, kExpC6));
  p = hn::MulAdd(p, r, hn::Set(kF, kExpC5));
  p = hn::MulAdd(p, r, hn::Set(kF, kExpC4));
  p = hn::MulAdd(p, r, hn::Set(kF, kExpC3));
  p = hn::MulAdd(p, r, hn::Set(kF, kExpC2));
  const V y = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(kF, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(I(), n), hn::Set(I(), 127)));
  return hn::Mul(y, hn::BitCast(kF, exponent));
}

// Adds up the 16 lanes of a canonical sum.
inline float tree(const V* lanes) {
  const hn::FixedTag<float, 4> four;
#if HWY_TARGET == HWY_AVX3
  const hn::FixedTag<float, 8> eight;
  const auto v = hn::Add(hn::LowerHalf(eight, lanes[0]), hn::UpperHalf(eight, lanes[0]));
#else
  const auto v = hn::Add(lanes[0], lanes[1]);
#endif
  auto w = hn::Add(hn::LowerHalf(four, v), hn::UpperHalf(four, v));
  w = hn::Add(w, hn::Shuffle1032(w));
  return hn::GetLane(hn::Add(w, hn::Shuffle2301(w)));
}

void attend(const AttentionTile& tile);  // vector_attention.cpp
Int8Kernels int8_kernels();              // vector_int8.cpp
Int8Kernels amx_kernels();               // vector_int8_amx.cpp, AVX-512 only

}  // namespace headrace::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
#endif
