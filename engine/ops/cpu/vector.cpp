// The vector targets (AVX-512, AVX2) of the canonical arithmetic, through Highway. The file
// compiles itself once per target. Below AVX2 there is no fused multiply-add, so those targets are
// left out.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <span>

#include "engine/ops/cpu/amx.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/packed_matrix.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/cpu/vector.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "engine/ops/cpu/vector_common.h"
#include "engine/ops/cpu/vector_weights.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace headrace::HWY_NAMESPACE {

// ---- Weights: panels -> float ----

template <DType kType>
void expand(const std::byte* block, int chunk, int k, float* HWY_RESTRICT w) {
  if constexpr (panel_layout(kType).block_k == 1) {
    for (int i = 0; i < k * kPanelRows; i += kL) {
      hn::StoreU(load_plain<kType>(block, i), kF, w + i);
    }
  } else {
    for_columns<kType>(block, chunk, [w](int i, const V* column) {
      for (int v = 0; v < kPanelV; ++v) {
        hn::StoreU(column[v], kF, w + i * kPanelRows + v * kL);
      }
    });
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

void multiply(const float* x, int64_t ldx, int rows, const float* w, int k, float* acc,
              std::span<const std::byte> next) {
  const int blocks = (rows + kTileRows - 1) / kTileRows;
  for (int b = 0; b < blocks; ++b) {
    fetch(next, b, b + 1, blocks);
    const int begin = rows * b / blocks, end = rows * (b + 1) / blocks;
    tile_of<kTileRows>(end - begin, x + begin * ldx, ldx, w, k, acc + begin * kPanelRows);
  }
}

// Few rows: the sums stay in registers while the weights go by.
constexpr int kFewRows = kL == 16 ? 4 : 2;

template <DType kType, int kRows>
void multiply_rows(const std::byte* panel, int64_t cols, const float* x, int64_t ldx, float* acc) {
  constexpr PanelLayout kLayout = panel_layout(kType);
  V a[kRows][kPanelV];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPanelV; ++v) a[m][v] = hn::LoadU(kF, acc + m * kPanelRows + v * kL);
  }
  const auto add_column = [&](int64_t k, const V* w) {
    for (int m = 0; m < kRows; ++m) {
      const V xm = hn::Set(kF, x[m * ldx + k]);
      for (int v = 0; v < kPanelV; ++v) a[m][v] = hn::MulAdd(xm, w[v], a[m][v]);
    }
  };
  if constexpr (kLayout.block_k == 1) {
    for (int64_t k = 0; k < cols; ++k) {
      V w[kPanelV];
      for (int v = 0; v < kPanelV; ++v) w[v] = load_plain<kType>(panel, k * kPanelRows + v * kL);
      add_column(k, w);
    }
  } else {
    for (int64_t k = 0; k < cols; k += kChunkK) {
      const std::byte* const block = panel + k / kLayout.block_k * kLayout.block_bytes;
      fetch_ahead<kType>(panel, k);
      for_columns<kType>(block, static_cast<int>(k % kLayout.block_k) / kChunkK,
                         [&](int i, const V* w) { add_column(k + i, w); });
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPanelV; ++v) hn::StoreU(a[m][v], kF, acc + m * kPanelRows + v * kL);
  }
}

template <DType kType, int kRows = kFewRows>
void multiply_panel(const std::byte* panel, int64_t cols, const float* x, int64_t ldx, int rows,
                    float* acc) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_panel<kType, kRows - 1>(panel, cols, x, ldx, rows, acc);
  }
  multiply_rows<kType, kRows>(panel, cols, x, ldx, acc);
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
  V sums[kHalfV];  // not `acc` again: g++ 12 fails with an internal error
  for (int v = 0; v < kHalfV; ++v) sums[v] = hn::LoadU(kF, lanes + v * kL);
  return tree(sums);
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

Kernels table(const Int8Kernels& int8) {
  return {
      HWY_TARGET == HWY_AVX2 ? Target::kAvx2 : Target::kAvx512,
      HWY_TARGET == HWY_AVX2 ? "avx2" : "avx512",
      kFewRows,
#include "engine/ops/cpu/kernel_table.inc"
  };
}

}  // namespace headrace::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

#if HWY_ONCE
namespace headrace::cpu_detail {

const Kernels& vector_kernels(Target target) {
  // A table is made by code of its own target.
  if (target == Target::kAvx2) {
    static const Kernels avx2 = N_AVX2::table(vector_int8_tables(target).front());
    return avx2;
  }
  static const Kernels avx512 = N_AVX3::table(vector_int8_tables(target).front());
  return avx512;
}

std::vector<Int8Kernels> vector_int8_tables(Target target) {
  std::vector<Int8Kernels> tables;
  if (target == Target::kAvx512 && __builtin_cpu_supports("avx512vnni")) {
    if (may_use_amx()) tables.push_back(N_AVX3::amx_kernels());
    tables.push_back(N_AVX3::int8_kernels());
  }
  tables.push_back(N_AVX2::int8_kernels());
  return tables;
}

}  // namespace headrace::cpu_detail
#endif
