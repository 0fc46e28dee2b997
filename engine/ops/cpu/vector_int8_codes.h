// Codes of a panel as integer products take them, and those products: included once per Highway
// target by vector_int8_tile.h, after vector_weights.h. A vector of codes has in each lane of 32
// bits four columns, ascending, of one row: unsigned bytes, but signed ones of 8 bits on AVX2.

#if defined(HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_CODES_H) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_CODES_H
#undef HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_CODES_H
#else
#define HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_CODES_H
#endif

#include <immintrin.h>

#include "engine/ops/cpu/vector_weights.h"
#include "engine/ops/int8.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#else
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR)
#endif
namespace headrace::HWY_NAMESPACE {

using IV = hn::Vec<I>;

// What decides how codes are multiplied.
struct Int8Kind {
  int zero;     // what a code is too large by
  bool offset;  // offsets are added
  int parts;    // of a group, each with a scale of its own
  bool is_signed;
  // How many pairs of products are added up in 16 bits (AVX2). A pair of codes of b bits is at most
  // 2 * (2^b - 1) * 127 in magnitude: 2 * 16002 with 6 bits, 4 * 7874 with 5 and 8 * 3810 with 4
  // are below 2^15, as is one pair of 8 signed bits, 2 * 128 * 127.
  int together;
};

constexpr Int8Kind int8_kind(DType dtype) {
  const CodeKind kind = code_kind(dtype);
  const int parts = kInt8Columns / (kind.group < kInt8Columns ? kind.group : kInt8Columns);
  const int bits = kind.low_bits + kind.high_bits;
#if HWY_TARGET == HWY_AVX3
  const int zero = bits == 8 && !kind.offset ? 128 : kind.zero;
  return {zero, kind.offset, parts, false, 1};
#else
  if (bits == 8) return {kind.offset ? -128 : 0, kind.offset, parts, true, 1};
  return {kind.zero, kind.offset, parts, false, bits == 6 ? 2 : bits == 5 ? 4 : 8};
#endif
}

#if HWY_TARGET == HWY_AVX3

inline __m512i load_line(const std::byte* p) { return _mm512_loadu_si512(p); }

// In each 128 bits, where bytes [column][row] are of four columns: [row][column].
inline __m512i transposed(__m512i v) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(order));
}

// sum + the products of four columns each: exact, for nothing is saturated and 32 columns of them
// are less than 2^24.
template <Int8Kind>
IV add_product(IV sum, IV codes, IV x) {
  return IV{_mm512_dpbusd_epi32(sum.raw, codes.raw, x.raw)};
}

// The first plane of columns k .. k + 3: rows 0 .. 15, then the others.
template <int kBits>
HWY_INLINE void low_plane(const std::byte* codes, int k, __m512i* out) {
  if constexpr (kBits == 8) {
    const __m512i a = load_line(codes + k * 32), b = load_line(codes + k * 32 + 64);
    const __m512i order =
        _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i four = _mm512_set1_epi32(4);
    out[0] = transposed(_mm512_permutex2var_epi32(a, order, b));
    out[1] = transposed(_mm512_permutex2var_epi32(a, _mm512_add_epi32(order, four), b));
  } else if constexpr (kBits == 4) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i v = transposed(_mm512_permutexvar_epi32(order, load_line(codes + k * 16)));
    const __m512i mask = _mm512_set1_epi8(15);
    out[0] = _mm512_and_si512(v, mask);
    out[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
  } else {
    static_assert(kBits == 2);
    const __m512i order = _mm512_setr_epi32(0, 4, 0, 4, 1, 5, 1, 5, 2, 6, 2, 6, 3, 7, 3, 7);
    const __m128i twice = _mm_setr_epi8(0, 0, 4, 4, 1, 1, 5, 5, 2, 2, 6, 6, 3, 3, 7, 7);
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + k * 8));
    const __m512i v =
        _mm512_shuffle_epi8(_mm512_permutexvar_epi32(order, _mm512_castsi256_si512(both)),
                            _mm512_broadcast_i32x4(twice));
    const __m512i even = _mm512_set1_epi16(0x0003), odd = _mm512_set1_epi16(0x0300);
    for (int h = 0; h < 2; ++h) {
      out[h] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(v, h * 2), even),
                               _mm512_and_si512(_mm512_srli_epi16(v, 4 + h * 2), odd));
    }
  }
}

// Adds the plane of one bit, at bit kTo of the codes.
template <int kTo>
HWY_INLINE void add_bit(const std::byte* plane, int k, __m512i* out) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(plane + k * 4));
  const __m512i order = _mm512_add_epi8(
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)),
      _mm512_set_epi64(0x0c0c0c0c0c0c0c0c, 0x0c0c0c0c0c0c0c0c, 0x0808080808080808,
                       0x0808080808080808, 0x0404040404040404, 0x0404040404040404, 0, 0));
  const __m512i v = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), order);
  const __m512i bit = _mm512_set1_epi8(1 << kTo);
  for (int h = 0; h < 2; ++h) {
    const __mmask64 set = _mm512_test_epi8_mask(
        v, _mm512_set1_epi32(h == 0 ? 0x40100401 : static_cast<int>(0x80200802u)));
    out[h] = _mm512_mask_add_epi8(out[h], set, out[h], bit);
  }
}

template <DType kType>
HWY_INLINE void four_columns(const std::byte* codes, int k, IV* out) {
  constexpr CodeKind kKind = code_kind(kType);
  const std::byte* const high = high_plane<kType>(codes);
  __m512i v[2];
  low_plane<kKind.low_bits>(codes, k, v);
  if constexpr (kKind.high_bits == 1) add_bit<kKind.low_bits>(high, k, v);
  if constexpr (kKind.high_bits == 2) {
    __m512i upper[2];
    low_plane<2>(high, k, upper);
    for (int h = 0; h < 2; ++h) {
      v[h] = _mm512_or_si512(v[h], _mm512_slli_epi16(upper[h], kKind.low_bits));
    }
  }
  for (int h = 0; h < 2; ++h) {
    if constexpr (kType == DType::kQ8_0) v[h] = _mm512_xor_si512(v[h], _mm512_set1_epi8(-128));
    out[h] = IV{v[h]};
  }
}

#else

inline __m128i load_16(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

// Pairs of products of four columns, in 16 bits; nothing is saturated, see `together`. Signed codes
// give their signs to x, which is never -128.
template <Int8Kind kKind>
IV pairs(IV codes, IV x) {
  if constexpr (kKind.is_signed) {
    return IV{_mm256_maddubs_epi16(_mm256_abs_epi8(codes.raw), _mm256_sign_epi8(x.raw, codes.raw))};
  } else {
    return IV{_mm256_maddubs_epi16(codes.raw, x.raw)};
  }
}

// Bytes [column][row] of four columns of 16 rows, `stride` bytes apart: rows 0 .. 7, then 8 .. 15.
inline void transpose(const std::byte* p, int stride, __m256i* out) {
  const __m256i a = _mm256_setr_m128i(load_16(p), load_16(p + 2 * stride));
  const __m256i b = _mm256_setr_m128i(load_16(p + stride), load_16(p + 3 * stride));
  const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  const __m256i both[] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
  for (int h = 0; h < 2; ++h) {
    out[h] = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(both[h], 0xD8),
                                 _mm256_broadcastsi128_si256(order));
  }
}

// The first plane of columns k .. k + 3: rows 0 .. 7, 8 .. 15, 16 .. 23, 24 .. 31.
template <int kBits>
HWY_INLINE void low_plane(const std::byte* codes, int k, __m256i* out) {
  if constexpr (kBits == 8) {
    transpose(codes + k * 32, 32, out);
    transpose(codes + k * 32 + 16, 32, out + 2);
  } else if constexpr (kBits == 4) {
    __m256i v[2];
    transpose(codes + k * 16, 16, v);
    const __m256i mask = _mm256_set1_epi8(15);
    for (int h = 0; h < 2; ++h) {
      out[h] = _mm256_and_si256(v[h], mask);
      out[2 + h] = _mm256_and_si256(_mm256_srli_epi16(v[h], 4), mask);
    }
  } else {
    static_assert(kBits == 2);
    const __m128i twice = _mm_setr_epi8(0, 0, 4, 4, 1, 1, 5, 5, 2, 2, 6, 6, 3, 3, 7, 7);
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + k * 8));
    const __m256i even = _mm256_set1_epi16(0x0003), odd = _mm256_set1_epi16(0x0300);
    for (int h = 0; h < 2; ++h) {
      const __m256i first = _mm256_setr_epi32(0, 4, 0, 4, 1, 5, 1, 5);
      const __m256i order = _mm256_add_epi32(first, _mm256_set1_epi32(h * 2));
      const __m256i v = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(both, order),
                                            _mm256_broadcastsi128_si256(twice));
      for (int upper = 0; upper < 2; ++upper) {
        out[upper * 2 + h] =
            _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(v, upper * 2), even),
                            _mm256_and_si256(_mm256_srli_epi16(v, 4 + upper * 2), odd));
      }
    }
  }
}

// Adds the plane of one bit, at bit kTo of the codes.
template <int kTo>
HWY_INLINE void add_bit(const std::byte* plane, int k, __m256i* out) {
  const __m256i bytes = _mm256_broadcastsi128_si256(load_16(plane + k * 4));
  const __m256i first = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4,
                                         5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
  for (int h = 0; h < 2; ++h) {
    const __m256i order = _mm256_add_epi8(first, _mm256_set1_epi8(static_cast<char>(h * 8)));
    const __m256i v = _mm256_shuffle_epi8(bytes, order);
    for (int upper = 0; upper < 2; ++upper) {
      const __m256i wanted =
          _mm256_set1_epi32(upper == 0 ? 0x40100401 : static_cast<int>(0x80200802u));
      const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(v, wanted), wanted);
      out[upper * 2 + h] =
          _mm256_or_si256(out[upper * 2 + h], _mm256_and_si256(set, _mm256_set1_epi8(1 << kTo)));
    }
  }
}

template <DType kType>
HWY_INLINE void four_columns(const std::byte* codes, int k, IV* out) {
  constexpr CodeKind kKind = code_kind(kType);
  const std::byte* const high = high_plane<kType>(codes);
  __m256i v[kPanelV];
  low_plane<kKind.low_bits>(codes, k, v);
  if constexpr (kKind.high_bits == 1) add_bit<kKind.low_bits>(high, k, v);
  if constexpr (kKind.high_bits == 2) {
    __m256i upper[kPanelV];
    low_plane<2>(high, k, upper);
    for (int i = 0; i < kPanelV; ++i) {
      v[i] = _mm256_or_si256(v[i], _mm256_slli_epi16(upper[i], kKind.low_bits));
    }
  }
  for (int i = 0; i < kPanelV; ++i) {
    if constexpr (kType == DType::kG8) v[i] = _mm256_xor_si256(v[i], _mm256_set1_epi8(-128));
    out[i] = IV{v[i]};
  }
}

#endif

}  // namespace headrace::HWY_NAMESPACE
HWY_POP_ATTRIBUTES

#endif
#endif
