// The vector targets (AVX-512, AVX2) of the canonical arithmetic, through Highway. The file
// compiles itself once per target. Below AVX2 there is no fused multiply-add, so those targets are
// left out.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "engine/ops/cpu/kernels.h"
#include "engine/ops/packed_matrix.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/cpu/vector.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "engine/ops/cpu/vector_common.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace headrace::HWY_NAMESPACE {

constexpr int kPanelV = kPanelRows / kL;

// ---- Weights: panels -> float ----

V load_bf16(const void* p) {
  const hn::Rebind<uint16_t, F> d16;
  const hn::RebindToUnsigned<F> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, static_cast<const uint16_t*>(p)));
  return hn::BitCast(kF, hn::ShiftLeft<16>(bits));
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

// Codes of rows 16*upper .. +15 at column k, as bytes less the zero point.
template <DType kType>
B codes_of(const std::byte* codes, int block_k, int k, int upper) {
  constexpr CodeKind kKind = code_kind(kType);
  const auto load = [](const std::byte* p) {
    return hn::LoadU(Bytes(), reinterpret_cast<const uint8_t*>(p));
  };
  if constexpr (kKind.low_bits == 8) {
    return load(codes + k * kPanelRows + upper * 16);
  } else {
    const std::byte* high = codes + block_k * kPanelRows * kKind.low_bits / 8;
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

template <DType kType>
void expand_coded(const std::byte* block, int chunk, int, float* HWY_RESTRICT w) {
  constexpr CodeKind kKind = code_kind(kType);
  const PanelLayout layout = panel_layout(kType);
  const std::byte* codes = block + layout.codes_offset;
  V scale[kPanelV], offset[kPanelV], q[kPanelV];
  for (int i = 0; i < kChunkK; ++i) {
    const int k = chunk * kChunkK + i;
    if (i % kKind.group == 0) scales_of<kType>(block, k, scale, offset);
    for (int h = 0; h < 2; ++h) {
      to_float<(kKind.zero != 0 || kType == DType::kQ8_0)>(
          codes_of<kType>(codes, layout.block_k, k, h), q + h * kHalfV);
    }
    for (int v = 0; v < kPanelV; ++v) {
      V value = hn::Mul(scale[v], q[v]);
      if constexpr (kKind.offset) value = hn::Add(value, offset[v]);
      hn::StoreU(value, kF, w + i * kPanelRows + v * kL);
    }
  }
}

template <DType kType>
void expand_plain(const std::byte* block, int, int k, float* HWY_RESTRICT w) {
  for (int i = 0; i < k * kPanelRows; i += kL) {
    if constexpr (kType == DType::kF32) {
      hn::StoreU(hn::LoadU(kF, reinterpret_cast<const float*>(block) + i), kF, w + i);
    } else if constexpr (kType == DType::kF16) {
      hn::StoreU(load_f16(block + i * 2), kF, w + i);
    } else {
      hn::StoreU(load_bf16(block + i * 2), kF, w + i);
    }
  }
}

template <DType kType>
void expand(const std::byte* block, int chunk, int k, float* HWY_RESTRICT w) {
  if constexpr (panel_layout(kType).block_k == 1) {
    expand_plain<kType>(block, chunk, k, w);
  } else {
    expand_coded<kType>(block, chunk, k, w);
  }
}

// ---- Linear: outputs across lanes, k ascending ----

constexpr int kTileRows = kL == 16 ? 14 : 6;  // accumulators: rows x 2 vectors, plus 2 for weights

template <int kRows>
void tile(const float* HWY_RESTRICT x, int64_t ldx, const float* HWY_RESTRICT w, int k,
          float* HWY_RESTRICT acc) {
  V a[kRows][2];
  for (int m = 0; m < kRows; ++m) {
    a[m][0] = hn::LoadU(kF, acc + m * kPanelRows);
    a[m][1] = hn::LoadU(kF, acc + m * kPanelRows + kL);
  }
  for (int i = 0; i < k; ++i) {
    const V w0 = hn::LoadU(kF, w + i * kPanelRows);
    const V w1 = hn::LoadU(kF, w + i * kPanelRows + kL);
    for (int m = 0; m < kRows; ++m) {
      const V xm = hn::Set(kF, x[m * ldx + i]);
      a[m][0] = hn::MulAdd(xm, w0, a[m][0]);
      a[m][1] = hn::MulAdd(xm, w1, a[m][1]);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    hn::StoreU(a[m][0], kF, acc + m * kPanelRows);
    hn::StoreU(a[m][1], kF, acc + m * kPanelRows + kL);
  }
}

template <int kRows>
void tile_of(int rows, const float* x, int64_t ldx, const float* w, int k, float* acc) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of<kRows - 1>(rows, x, ldx, w, k, acc);
  }
  for (int column = 0; column < kPanelRows; column += 2 * kL) {
    tile<kRows>(x, ldx, w + column, k, acc + column);
  }
}

void multiply(const float* x, int64_t ldx, int rows, const float* w, int k, float* acc) {
  const int blocks = (rows + kTileRows - 1) / kTileRows;
  for (int b = 0; b < blocks; ++b) {
    const int begin = rows * b / blocks, end = rows * (b + 1) / blocks;
    tile_of<kTileRows>(end - begin, x + begin * ldx, ldx, w, k, acc + begin * kPanelRows);
  }
}

// ---- Vectors ----

// The canonical sum: `fold` takes a vector accumulator and an index, `fold1` a lane and an index.
template <typename Fold, typename Fold1>
float lane_sum(int64_t n, Fold fold, Fold1 fold1) {
  V acc[kHalfV];
  for (int v = 0; v < kHalfV; ++v) acc[v] = hn::Zero(kF);
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int v = 0; v < kHalfV; ++v) acc[v] = fold(acc[v], i + v * kL);
  }
  float lanes[kSumLanes];
  for (int v = 0; v < kHalfV; ++v) hn::StoreU(acc[v], kF, lanes + v * kL);
  for (; i < n; ++i) lanes[i % kSumLanes] = fold1(lanes[i % kSumLanes], i);
  return tree(lanes);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  const float sum = lane_sum(
      n,
      [&](V s, int64_t i) {
        const V v = hn::LoadU(kF, x + i);
        return hn::MulAdd(v, v, s);
      },
      [&](float s, int64_t i) { return std::fma(x[i], x[i], s); });
  const float r = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  int64_t i = 0;
  for (; i + kL <= n; i += kL) {
    const V v = hn::Mul(hn::LoadU(kF, x + i), hn::Set(kF, r));
    hn::StoreU(hn::Mul(v, hn::LoadU(kF, weight + i)), kF, y + i);
  }
  for (; i < n; ++i) y[i] = x[i] * r * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                float* y) {
  const float count = static_cast<float>(n);
  const float mean = lane_sum(
                         n, [&](V s, int64_t i) { return hn::Add(s, hn::LoadU(kF, x + i)); },
                         [&](float s, int64_t i) { return s + x[i]; }) /
                     count;
  const V mean_v = hn::Set(kF, mean);
  const float squares = lane_sum(
      n,
      [&](V s, int64_t i) {
        const V d = hn::Sub(hn::LoadU(kF, x + i), mean_v);
        return hn::MulAdd(d, d, s);
      },
      [&](float s, int64_t i) { return std::fma(x[i] - mean, x[i] - mean, s); });
  const float r = 1.0f / std::sqrt(squares / count + eps);
  int64_t i = 0;
  for (; i + kL <= n; i += kL) {
    const V v = hn::Mul(hn::Sub(hn::LoadU(kF, x + i), mean_v), hn::Set(kF, r));
    hn::StoreU(hn::MulAdd(v, hn::LoadU(kF, weight + i), hn::LoadU(kF, bias + i)), kF, y + i);
  }
  for (; i < n; ++i) y[i] = std::fma((x[i] - mean) * r, weight[i], bias[i]);
}

void rotate(float* v, const float* cos, const float* sin, int half) {
  int i = 0;
  for (; i + kL <= half; i += kL) {
    const V a = hn::LoadU(kF, v + i), b = hn::LoadU(kF, v + i + half);
    const V c = hn::LoadU(kF, cos + i), s = hn::LoadU(kF, sin + i);
    hn::StoreU(hn::MulAdd(a, c, hn::Neg(hn::Mul(b, s))), kF, v + i);
    hn::StoreU(hn::MulAdd(b, c, hn::Mul(a, s)), kF, v + i + half);
  }
  for (; i < half; ++i) {
    const float a = v[i], b = v[i + half];
    v[i] = std::fma(a, cos[i], -(b * sin[i]));
    v[i + half] = std::fma(b, cos[i], a * sin[i]);
  }
}

void add(float* x, const float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kL <= n; i += kL) {
    hn::StoreU(hn::Add(hn::LoadU(kF, x + i), hn::LoadU(kF, y + i)), kF, x + i);
  }
  for (; i < n; ++i) x[i] += y[i];
}

void relu(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kL <= n; i += kL) {
    const V v = hn::LoadU(kF, x + i);
    hn::StoreU(hn::IfThenElseZero(hn::Gt(v, hn::Zero(kF)), v), kF, x + i);
  }
  for (; i < n; ++i) x[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void silu_multiply(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kL <= n; i += kL) {
    const V g = hn::LoadU(kF, gate + i);
    const V s = hn::Div(g, hn::Add(hn::Set(kF, 1.0f), exp(hn::Neg(g))));
    hn::StoreU(hn::Mul(s, hn::LoadU(kF, up + i)), kF, gate + i);
  }
  for (; i < n; ++i) gate[i] = gate[i] / (1.0f + canonical_exp(-gate[i])) * up[i];
}

float sum_exp(const float* x, float shift, int64_t n) {
  const V shift_v = hn::Set(kF, shift);
  return lane_sum(
      n, [&](V s, int64_t i) { return hn::Add(s, exp(hn::Sub(hn::LoadU(kF, x + i), shift_v))); },
      [&](float s, int64_t i) { return s + canonical_exp(x[i] - shift); });
}

int64_t argmax(const float* x, int64_t n) {
  V best = hn::Set(kF, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kL <= n; i += kL) {
    const V v = hn::LoadU(kF, x + i);
    best = hn::IfThenElse(hn::Gt(v, best), v, best);
  }
  float lanes[kL];
  hn::StoreU(best, kF, lanes);
  float value = -std::numeric_limits<float>::infinity();
  for (const float lane : lanes) value = lane > value ? lane : value;
  for (; i < n; ++i) value = x[i] > value ? x[i] : value;
  if (value == -std::numeric_limits<float>::infinity()) return 0;
  return std::find(x, x + n, value) - x;
}

Kernels table() {
  return {
      HWY_TARGET == HWY_AVX2 ? Target::kAvx2 : Target::kAvx512,
      HWY_TARGET == HWY_AVX2 ? "avx2" : "avx512",
#include "engine/ops/cpu/kernel_table.inc"
  };
}

}  // namespace headrace::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

#if HWY_ONCE
namespace headrace::cpu_detail {

const Kernels& vector_kernels(Target target) {
  static const Kernels avx2 = N_AVX2::table();
  static const Kernels avx512 = N_AVX3::table();
  return target == Target::kAvx2 ? avx2 : avx512;
}

}  // namespace headrace::cpu_detail
#endif
