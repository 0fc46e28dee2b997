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

constexpr F kF;
constexpr int kL = static_cast<int>(hn::MaxLanes(kF));  // 16 or 8
constexpr int kHalfV = 16 / kL;                         // vectors per 16 rows or tokens
constexpr int kPanelV = kPanelRows / kL;

// ---- Weights: panels -> float ----

V load_f16(const void* p) {
  const hn::Rebind<hwy::float16_t, F> d16;
  return hn::PromoteTo(kF, hn::LoadU(d16, static_cast<const hwy::float16_t*>(p)));
}

V load_bf16(const void* p) {
  const hn::Rebind<uint16_t, F> d16;
  const hn::RebindToUnsigned<F> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, static_cast<const uint16_t*>(p)));
  return hn::BitCast(kF, hn::ShiftLeft<16>(bits));
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
      to_float<(kKind.zero != 0 || kKind.low_bits == 8)>(
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

V exp(V x) {
  // Comparisons, because Min and Max lose a NaN.
  const V low = hn::Set(kF, kExpMin), high = hn::Set(kF, kExpMax);
  x = hn::IfThenElse(hn::Lt(x, low), low, x);
  x = hn::IfThenElse(hn::Gt(x, high), high, x);
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

float tree(float* lanes) {
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

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

// ---- Attention: tokens of a page across lanes for the scores, head dimension for the values ----

template <KvFormat kFormat>
V load_kv(const std::byte* page, int64_t index) {
  if constexpr (kFormat == KvFormat::kF16) return load_f16(page + index * 2);
  return hn::LoadU(kF, reinterpret_cast<const float*>(page) + index);
}

struct Softmax {
  float max, sum, keep;
  int valid;  // tokens of the current page this query sees
};

// Scores of one page -> p[16], and the running maximum and sum. Lanes past `valid` get p = 0.
void page_softmax(const V* dot, float scale, bool first, Softmax& state, float* p) {
  float score[kPageTokens];
  V masked[kHalfV];
  V max_v = hn::Set(kF, -std::numeric_limits<float>::infinity());
  for (int v = 0; v < kHalfV; ++v) {
    const auto seen = hn::FirstN(kF, static_cast<size_t>(std::max(0, state.valid - v * kL)));
    masked[v] = hn::IfThenElse(seen, hn::Mul(dot[v], hn::Set(kF, scale)),
                               hn::Set(kF, -std::numeric_limits<float>::infinity()));
    max_v = hn::IfThenElse(hn::Gt(masked[v], max_v), masked[v], max_v);  // passes over NaN
  }
  const float page_max = hn::GetLane(hn::MaxOfLanes(kF, max_v));
  const float new_max = first ? page_max : std::max(state.max, page_max);
  state.keep = first ? 1.0f : canonical_exp(state.max - new_max);
  for (int v = 0; v < kHalfV; ++v) {
    const auto seen = hn::FirstN(kF, static_cast<size_t>(std::max(0, state.valid - v * kL)));
    const V e = hn::IfThenElseZero(seen, exp(hn::Sub(masked[v], hn::Set(kF, new_max))));
    hn::StoreU(e, kF, p + v * kL);
    hn::StoreU(e, kF, score + v * kL);
  }
  state.sum = std::fma(state.sum, state.keep, tree(score));
  state.max = new_max;
}

template <KvFormat kFormat, int kQueries>
void attend_page(const AttentionTile& t, const int* which, Softmax* states, int64_t page) {
  const std::byte* k_page = t.k_pages[page];
  const std::byte* v_page = t.v_pages[page];
  V dot[kQueries][kHalfV];
  for (auto& row : dot) {
    for (V& v : row) v = hn::Zero(kF);
  }
  for (int d = 0; d < t.head_dim; ++d) {
    for (int v = 0; v < kHalfV; ++v) {
      const V key = load_kv<kFormat>(k_page, d * kPageTokens + v * kL);
      for (int i = 0; i < kQueries; ++i) {
        dot[i][v] = hn::MulAdd(hn::Set(kF, t.q[which[i]][d]), key, dot[i][v]);
      }
    }
  }
  float p[kQueries][kPageTokens];
  int seen_by_all = kPageTokens, seen_by_any = 0;
  for (int i = 0; i < kQueries; ++i) {
    Softmax& state = states[which[i]];
    const int64_t left = t.position[which[i]] + 1 - page * kPageTokens;
    state.valid = static_cast<int>(std::min<int64_t>(kPageTokens, left));
    seen_by_all = std::min(seen_by_all, state.valid);
    seen_by_any = std::max(seen_by_any, state.valid);
    page_softmax(dot[i], t.scale, page == 0, state, p[i]);
  }
  for (int d = 0; d < t.head_dim; d += kL) {
    // out has head_dim elements; the last vector of an odd head_dim is kept in `tail`.
    const bool whole = d + kL <= t.head_dim;
    const auto lanes = hn::FirstN(kF, static_cast<size_t>(t.head_dim - d));
    V out[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      const float* from = t.out[which[i]] + d;
      const V old = whole ? hn::LoadU(kF, from) : hn::MaskedLoad(lanes, kF, from);
      out[i] = hn::Mul(old, hn::Set(kF, states[which[i]].keep));
    }
    int token = 0;
    for (; token < seen_by_all; ++token) {
      const V value = load_kv<kFormat>(v_page, token * t.v_stride + d);
      for (int i = 0; i < kQueries; ++i) {
        out[i] = hn::MulAdd(hn::Set(kF, p[i][token]), value, out[i]);
      }
    }
    // A query must not add even 0 * v of a later token: v may be infinite, and -0 + 0 is not -0.
    for (; token < seen_by_any; ++token) {
      const V value = load_kv<kFormat>(v_page, token * t.v_stride + d);
      for (int i = 0; i < kQueries; ++i) {
        if (token < states[which[i]].valid) {
          out[i] = hn::MulAdd(hn::Set(kF, p[i][token]), value, out[i]);
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      float* to = t.out[which[i]] + d;
      if (whole) {
        hn::StoreU(out[i], kF, to);
      } else {
        hn::BlendedStore(out[i], lanes, kF, to);
      }
    }
  }
}

constexpr int kTileQueries = kL == 16 ? 8 : 4;

template <KvFormat kFormat, int kQueries = kTileQueries>
void attend_page_of(int queries, const AttentionTile& t, const int* which, Softmax* states,
                    int64_t page) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries)
      return attend_page_of<kFormat, kQueries - 1>(queries, t, which, states, page);
  }
  attend_page<kFormat, kQueries>(t, which, states, page);
}

template <KvFormat kFormat>
void attend_format(const AttentionTile& t) {
  Softmax states[AttentionTile::kMaxQueries] = {};
  int64_t last = 0;
  for (int i = 0; i < t.queries; ++i) {
    std::fill(t.out[i], t.out[i] + t.head_dim, 0.0f);
    last = std::max(last, t.position[i]);
  }
  for (int64_t page = 0; page * kPageTokens <= last; ++page) {
    int which[AttentionTile::kMaxQueries];
    int count = 0;
    for (int i = 0; i < t.queries; ++i) {
      if (page * kPageTokens <= t.position[i]) which[count++] = i;
    }
    for (int i = 0; i < count; i += kTileQueries) {
      attend_page_of<kFormat>(std::min(kTileQueries, count - i), t, which + i, states, page);
    }
  }
  for (int i = 0; i < t.queries; ++i) {
    for (int d = 0; d < t.head_dim; ++d) t.out[i][d] /= states[i].sum;
  }
}

void attend(const AttentionTile& t) {
  if (t.format == KvFormat::kF16) {
    attend_format<KvFormat::kF16>(t);
  } else {
    attend_format<KvFormat::kF32>(t);
  }
}

Kernels table() {
  return {
      HWY_TARGET == HWY_AVX2 ? Target::kAvx2 : Target::kAvx512,
      HWY_TARGET == HWY_AVX2 ? "avx2" : "avx512",
      {expand_plain<DType::kF32>, expand_plain<DType::kF16>, expand_plain<DType::kBF16>,
       expand_coded<DType::kQ8_0>, expand_coded<DType::kQ4_0>, expand_coded<DType::kQ4_1>,
       expand_coded<DType::kQ5_0>, expand_coded<DType::kQ5_1>, expand_coded<DType::kQ2_K>,
       expand_coded<DType::kQ3_K>, expand_coded<DType::kQ4_K>, expand_coded<DType::kQ5_K>,
       expand_coded<DType::kQ6_K>},
      multiply,
      rms_norm,
      layer_norm,
      rotate,
      add,
      relu,
      silu_multiply,
      attend,
      sum_exp,
      argmax,
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
