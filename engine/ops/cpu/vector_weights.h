// Weights of a panel as float vectors, column by column: included once per Highway target by
// vector.cpp and vector_int8_codes.h, after vector_common.h.

#if defined(HEADRACE_ENGINE_OPS_CPU_VECTOR_WEIGHTS_H) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADRACE_ENGINE_OPS_CPU_VECTOR_WEIGHTS_H
#undef HEADRACE_ENGINE_OPS_CPU_VECTOR_WEIGHTS_H
#else
#define HEADRACE_ENGINE_OPS_CPU_VECTOR_WEIGHTS_H
#endif

#include "engine/ops/cpu/vector_common.h"
#include "engine/ops/packed_matrix.h"
#include "hwy/cache_control.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace headrace::HWY_NAMESPACE {

inline constexpr int kPanelV = kPanelRows / kL;

inline V load_bf16(const void* p) {
  const hn::Rebind<uint16_t, F> d16;
  const hn::RebindToUnsigned<F> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, static_cast<const uint16_t*>(p)));
  return hn::BitCast(kF, hn::ShiftLeft<16>(bits));
}

inline constexpr size_t kLine = 64;  // of the caches

// Fetches parts [first, end) of `parts` of this into the caches; it need not be memory.
inline void fetch(std::span<const std::byte> bytes, int first, int end, int parts) {
  const size_t lines = bytes.size() / kLine, past = lines * end / parts;
  for (size_t line = lines * first / parts; line < past; ++line) {
    hwy::Prefetch(bytes.data() + line * kLine);
  }
}

// A page of memory, at whose border a CPU stops to fetch what comes next by itself.
inline constexpr size_t kAhead = 4096;

// What a chunk of columns takes, a page further on.
template <DType kType>
void fetch_ahead(const std::byte* panel, int64_t k) {
  constexpr PanelLayout kLayout = panel_layout(kType);
  constexpr size_t kBytes = kLayout.block_bytes * kChunkK / kLayout.block_k;
  const std::byte* const from = panel + static_cast<size_t>(k / kChunkK) * kBytes + kAhead;
  for (size_t at = 0; at < kBytes; at += kLine) hwy::Prefetch(from + at);
}

struct CodeKind {
  int low_bits, high_bits, zero;
  bool offset;   // an offset is added
  int group;     // columns per scale
  bool k_quant;  // scales are d * integer
};

constexpr CodeKind code_kind(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return {8, 0, 0, false, 32, false};
    case DType::kQ4_0:
      return {4, 0, 8, false, 32, false};
    case DType::kQ4_1:
      return {4, 0, 0, true, 32, false};
    case DType::kQ5_0:
      return {4, 1, 16, false, 32, false};
    case DType::kQ5_1:
      return {4, 1, 0, true, 32, false};
    case DType::kQ2_K:
      return {2, 0, 0, true, 16, true};
    case DType::kQ3_K:
      return {2, 1, 4, false, 16, true};
    case DType::kQ4_K:
      return {4, 0, 0, true, 32, true};
    case DType::kQ5_K:
      return {4, 1, 0, true, 32, true};
    case DType::kG8:
      return {8, 0, 0, true, 64, false};
    case DType::kG4:
      return {4, 0, 0, true, 64, false};
    default:
      return {4, 2, 32, false, 16, true};  // Q6_K
  }
}

// Where the second plane begins.
template <DType kType>
const std::byte* high_plane(const std::byte* codes) {
  return codes + panel_layout(kType).block_k * kPanelRows * code_kind(kType).low_bits / 8;
}

#if HWY_TARGET == HWY_AVX3

using Codes = hn::Vec<I>;  // one in each lane, with other bits above it

inline Codes load_codes(const std::byte* p) {
  return hn::PromoteTo(I(), hn::LoadU(Bytes(), reinterpret_cast<const uint8_t*>(p)));
}

// Bit `kFrom` of each lane moved to bit `kTo`.
template <int kFrom, int kTo>
Codes moved(Codes v) {
  if constexpr (kFrom > kTo) return hn::ShiftRight<kFrom - kTo>(v);
  if constexpr (kFrom < kTo) return hn::ShiftLeft<kTo - kFrom>(v);
  return v;
}

// What codes first, first + 1, ... stand for; codes of fewer than 4 bits are repeated, because a
// look-up takes 4 of them.
template <int kBits>
V meanings(int first, int zero) {
  constexpr int kDifferent = 1 << (kBits < 4 ? kBits : 4);
  alignas(64) float table[16];
  for (int i = 0; i < 16; ++i) table[i] = static_cast<float>(first + i % kDifferent - zero);
  return hn::Load(kF, table);
}

template <DType kType, int kColumn, int kUpper>
V code_values(const std::byte* codes, int k) {
  constexpr CodeKind kKind = code_kind(kType);
  constexpr int kBits = kKind.low_bits + kKind.high_bits, kIn2 = kColumn % 2 * 4 + kUpper * 2;
  const std::byte* const high = high_plane<kType>(codes);
  Codes v;
  if constexpr (kKind.low_bits == 4) {
    v = moved<kUpper * 4, 0>(load_codes(codes + (k + kColumn) * 16));
  } else {
    v = moved<kIn2, 0>(load_codes(codes + (k + kColumn) / 2 * 16));
  }
  if constexpr (kKind.high_bits == 2) {
    const Codes plane = load_codes(high + (k + kColumn) / 2 * 16);
    v = hn::IfVecThenElse(hn::Set(I(), 3 << kKind.low_bits), moved<kIn2, kKind.low_bits>(plane), v);
  } else if constexpr (kKind.high_bits == 1) {
    const Codes plane = load_codes(high + k / 4 * 16);
    v = hn::IfVecThenElse(hn::Set(I(), 1 << kKind.low_bits),
                          moved<kColumn * 2 + kUpper, kKind.low_bits>(plane), v);
  }
  if constexpr (kBits > 5) {
    v = hn::And(v, hn::Set(I(), (1 << kBits) - 1));
    return hn::ConvertTo(kF, hn::Sub(v, hn::Set(I(), kKind.zero)));
  } else if constexpr (kBits == 5) {
    const V low = meanings<4>(0, kKind.zero), upper = meanings<4>(16, kKind.zero);
    return V{_mm512_permutex2var_ps(low.raw, v.raw, upper.raw)};
  } else {
    return V{_mm512_permutexvar_ps(v.raw, meanings<kBits>(0, kKind.zero).raw)};
  }
}

// Codes of all rows in column k + kColumn of a block, k a multiple of 4, less the zero point.
template <DType kType, int kColumn>
void code_column(const std::byte* codes, int k, V* q) {
  if constexpr (code_kind(kType).low_bits == 8) {
    for (int h = 0; h < 2; ++h) {
      const B bytes = hn::LoadU(
          Bytes(), reinterpret_cast<const uint8_t*>(codes) + (k + kColumn) * kPanelRows + h * 16);
      to_float<kType == DType::kQ8_0>(bytes, q + h);
    }
  } else {
    q[0] = code_values<kType, kColumn, 0>(codes, k);
    q[1] = code_values<kType, kColumn, 1>(codes, k);
  }
}

#else

// Codes of rows 16*upper .. +15 at column k, as bytes less the zero point.
template <DType kType>
B codes_of(const std::byte* codes, int k, int upper) {
  constexpr CodeKind kKind = code_kind(kType);
  const auto load = [](const std::byte* p) {
    return hn::LoadU(Bytes(), reinterpret_cast<const uint8_t*>(p));
  };
  if constexpr (kKind.low_bits == 8) {
    return load(codes + k * kPanelRows + upper * 16);
  } else {
    const std::byte* const high = high_plane<kType>(codes);
    B v;
    if constexpr (kKind.low_bits == 4) {
      v = field<4, 0>(load(codes + k * 16), upper * 4);
    } else {
      v = field<2, 0>(load(codes + k / 2 * 16), k % 2 * 4 + upper * 2);
    }
    if constexpr (kKind.high_bits == 2) {
      v = hn::Or(v, field<2, kKind.low_bits>(load(high + k / 2 * 16), k % 2 * 4 + upper * 2));
    } else if constexpr (kKind.high_bits == 1) {
      v = hn::Or(v, field<1, kKind.low_bits>(load(high + k / 4 * 16), k % 4 * 2 + upper));
    }
    if constexpr (kKind.zero != 0) v = hn::Sub(v, hn::Set(Bytes(), kKind.zero));
    return v;
  }
}

// Codes of all rows in column k + kColumn of a block, k a multiple of 4, less the zero point.
template <DType kType, int kColumn>
void code_column(const std::byte* codes, int k, V* q) {
  for (int h = 0; h < 2; ++h) {
    to_float<(code_kind(kType).zero != 0 || kType == DType::kQ8_0)>(
        codes_of<kType>(codes, k + kColumn, h), q + h * kHalfV);
  }
}

#endif

// Scales (and offsets) of the 32 rows for the group that column k of the block lies in.
template <DType kType>
void scales_of(const std::byte* block, int k, V* scale, V* offset) {
  constexpr CodeKind kKind = code_kind(kType);
  const std::byte* after_d = block + kPanelRows * 2;
  const std::byte* after_dmin = block + kPanelRows * 4;
  const auto bytes_at = [](const std::byte* p) {
    return hn::LoadU(Bytes(), reinterpret_cast<const uint8_t*>(p));
  };
  for (int v = 0; v < kPanelV; ++v) {
    scale[v] = load_f16(block + v * kL * 2);
    if constexpr (kKind.offset) offset[v] = load_f16(after_d + v * kL * 2);
  }
  if constexpr (kKind.k_quant) {
    V factor[kPanelV], least[kPanelV];
    for (int h = 0; h < 2; ++h) {
      if constexpr (kType == DType::kQ2_K) {
        const B both = bytes_at(after_dmin + k / 16 * kPanelRows + h * 16);
        to_float<false>(field<4, 0>(both, 0), factor + h * kHalfV);
        to_float<false>(field<4, 0>(both, 4), least + h * kHalfV);
      } else if constexpr (kKind.offset) {
        to_float<false>(bytes_at(after_dmin + k / 32 * kPanelRows + h * 16), factor + h * kHalfV);
        to_float<false>(bytes_at(after_dmin + (8 + k / 32) * kPanelRows + h * 16),
                        least + h * kHalfV);
      } else {
        to_float<true>(bytes_at(after_d + k / 16 * kPanelRows + h * 16), factor + h * kHalfV);
      }
    }
    for (int v = 0; v < kPanelV; ++v) {
      scale[v] = hn::Mul(scale[v], factor[v]);
      if constexpr (kKind.offset) offset[v] = hn::Neg(hn::Mul(offset[v], least[v]));
    }
  }
}

// Calls use(i, w) for each column i of a chunk of a block, w[kPanelV] its weights.
template <DType kType, typename Use>
HWY_INLINE void for_columns(const std::byte* block, int chunk, Use use) {
  constexpr CodeKind kKind = code_kind(kType);
  const std::byte* const codes = block + panel_layout(kType).codes_offset;
  V scale[kPanelV], offset[kPanelV];
  for (int i = 0; i < kChunkK; i += 4) {
    const int k = chunk * kChunkK + i;
    if (i % kKind.group == 0) scales_of<kType>(block, k, scale, offset);
    const auto column = [&]<int kColumn>() {
      V w[kPanelV];
      code_column<kType, kColumn>(codes, k, w);
      for (int v = 0; v < kPanelV; ++v) {
        w[v] = hn::Mul(scale[v], w[v]);
        if constexpr (kKind.offset) w[v] = hn::Add(w[v], offset[v]);
      }
      use(i + kColumn, w);
    };
    column.template operator()<0>();
    column.template operator()<1>();
    column.template operator()<2>();
    column.template operator()<3>();
  }
}

// Elements i .. i + kL - 1 of a plain dtype.
template <DType kType>
V load_plain(const std::byte* elements, int64_t i) {
  if constexpr (kType == DType::kF32) {
    return hn::LoadU(kF, reinterpret_cast<const float*>(elements) + i);
  } else if constexpr (kType == DType::kF16) {
    return load_f16(elements + i * 2);
  } else {
    return load_bf16(elements + i * 2);
  }
}

}  // namespace headrace::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
#endif
