// Linear layers in integers (ops/int8.h) of the vector targets. The AVX-512 part uses VNNI; where a
// CPU has none, it takes the AVX2 part with all other kernels of AVX-512. The file compiles itself
// once per target.

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>

#include "engine/ops/cpu/kernels.h"
#include "engine/ops/packed_matrix.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/cpu/vector_int8.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "engine/ops/cpu/vector_int8_codes.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#else
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR)
#endif
namespace headrace::HWY_NAMESPACE {
namespace {

constexpr int kSteps = kInt8Columns / 4;  // products of four columns in a group
constexpr int kTileGroups = 8;            // expanded at a time: 8 KiB of codes
constexpr int kTileRows = kL == 16 ? 6 : 3;
constexpr int kFewRows = kL == 16 ? 4 : 2;

// ---- Rows ----

void quantise(const float* x, int64_t groups, Int8Group* out) {
  constexpr int kGroupV = kInt8Columns / kL;
  const hn::Rebind<int8_t, F> bytes;
  for (int64_t g = 0; g < groups; ++g) {
    V v[kGroupV];
    IV most = hn::Zero(I());
    for (int i = 0; i < kGroupV; ++i) {
      v[i] = hn::LoadU(kF, x + g * kInt8Columns + i * kL);
      most = hn::Max(most, hn::And(hn::BitCast(I(), v[i]), hn::Set(I(), 0x7fffffff)));
    }
    const auto largest = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(I(), most)));
    const float scale = int8_scale(largest);
    int sums[2] = {0, 0};
    if (scale > 0.0f) {
      const V factor = hn::Set(kF, kInt8Most / largest);
      IV sum[2] = {hn::Zero(I()), hn::Zero(I())};
      for (int i = 0; i < kGroupV; ++i) {
        const IV codes = hn::NearestInt(hn::Mul(v[i], factor));
        hn::StoreU(hn::DemoteTo(bytes, codes), bytes, out[g].codes + i * kL);
        IV& half = sum[i / (kGroupV / 2)];
        half = hn::Add(half, codes);
      }
      for (int h = 0; h < 2; ++h) sums[h] = hn::GetLane(hn::SumOfLanes(I(), sum[h]));
    } else {
      std::memset(out[g].codes, 0, sizeof out[g].codes);
    }
    finish_group(scale, sums[0], sums[1], out[g]);
  }
}

// ---- Products: outputs across lanes, groups ascending ----

inline IV broadcast(const int8_t* four_codes) {
  int32_t bits;
  std::memcpy(&bits, four_codes, sizeof bits);
  return hn::Set(I(), bits);
}

// What the zero point of the codes takes off their products with these.
template <int kZero>
IV less_zero(int32_t minus_sum) {
  if constexpr (kZero == 0) {
    return hn::Zero(I());
  } else {
    constexpr int kBits = std::countr_zero(static_cast<unsigned>(kZero < 0 ? -kZero : kZero));
    const IV v = hn::ShiftLeft<kBits>(hn::Set(I(), minus_sum));
    return kZero > 0 ? v : hn::Sub(hn::Zero(I()), v);
  }
}

// dot[m][v] += part `part` of group g. Source: codes(g, step, w) gives the kV vectors of four
// columns.
template <Int8Kind kKind, int kRows, int kV, typename Source>
HWY_INLINE void add_dots(const Source& source, int64_t g, int part, const Int8Group* x,
                         int64_t groups, IV (*dot)[kV]) {
  constexpr int kPartSteps = kSteps / kKind.parts;
#if HWY_TARGET == HWY_AVX3
  for (int s = part * kPartSteps; s < (part + 1) * kPartSteps; ++s) {
    IV w[kV];
    source.codes(g, s, w);
    for (int m = 0; m < kRows; ++m) {
      const IV q = broadcast(x[m * groups].codes + s * 4);
      for (int v = 0; v < kV; ++v) dot[m][v] = add_product<kKind>(dot[m][v], w[v], q);
    }
  }
#else
  constexpr int kTogether = std::min(kKind.together, kPartSteps);
  for (int s = part * kPartSteps; s < (part + 1) * kPartSteps; s += kTogether) {
    IV sums[kRows][kV];
    for (int t = 0; t < kTogether; ++t) {
      IV w[kV];
      source.codes(g, s + t, w);
      for (int m = 0; m < kRows; ++m) {
        const IV q = broadcast(x[m * groups].codes + (s + t) * 4);
        for (int v = 0; v < kV; ++v) {
          const IV p = pairs<kKind>(w[v], q);
          sums[m][v] = t == 0 ? p : IV{_mm256_add_epi16(sums[m][v].raw, p.raw)};
        }
      }
    }
    for (int m = 0; m < kRows; ++m) {
      for (int v = 0; v < kV; ++v) {
        const __m256i four = _mm256_madd_epi16(sums[m][v].raw, _mm256_set1_epi16(1));
        dot[m][v] = hn::Add(dot[m][v], IV{four});
      }
    }
  }
#endif
}

// acc[m][32] += rows x, which have `groups` groups each, times `count` groups of codes. Source, as
// above, and scales(g, part, scale, offset).
template <Int8Kind kKind, int kRows, int kV, typename Source>
HWY_INLINE void add_groups(const Source& source, int64_t count, const Int8Group* x, int64_t groups,
                           float* HWY_RESTRICT acc) {
  V a[kRows][kV];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kV; ++v) a[m][v] = hn::LoadU(kF, acc + m * kPanelRows + v * kL);
  }
  for (int64_t g = 0; g < count; ++g, ++x) {
    for (int part = 0; part < kKind.parts; ++part) {
      const int sums = kKind.parts == 1 ? kWhole : part;
      IV dot[kRows][kV];
      for (int m = 0; m < kRows; ++m) {
        for (int v = 0; v < kV; ++v) {
          dot[m][v] = less_zero<kKind.zero>(x[m * groups].minus_sum[sums]);
        }
      }
      add_dots<kKind, kRows, kV>(source, g, part, x, groups, dot);
      V scale[kV], offset[kV];
      source.scales(g, part, scale, offset);
      for (int m = 0; m < kRows; ++m) {
        const V x_scale = hn::Set(kF, x[m * groups].scale);
        const V x_sum = hn::Set(kF, x[m * groups].scaled_sum[sums]);
        for (int v = 0; v < kV; ++v) {
          const V of_both = hn::Mul(x_scale, scale[v]);
          a[m][v] = hn::MulAdd(hn::ConvertTo(kF, dot[m][v]), of_both, a[m][v]);
          if constexpr (kKind.offset) a[m][v] = hn::MulAdd(x_sum, offset[v], a[m][v]);
        }
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kV; ++v) hn::StoreU(a[m][v], kF, acc + m * kPanelRows + v * kL);
  }
}

// A panel itself: its codes are expanded on the way.
template <DType kType>
struct PanelSource {
  const std::byte* panel;
  int64_t first = 0;  // its group 0

  static constexpr PanelLayout kLayout = panel_layout(kType);
  static constexpr int kGroups = kLayout.block_k / kInt8Columns;  // of a block

  const std::byte* block(int64_t g) const {
    return panel + (first + g) / kGroups * kLayout.block_bytes;
  }
  int column(int64_t g) const { return static_cast<int>((first + g) % kGroups) * kInt8Columns; }

  HWY_INLINE void codes(int64_t g, int step, IV* w) const {
    four_columns<kType>(block(g) + kLayout.codes_offset, column(g) + step * 4, w);
  }
  HWY_INLINE void scales(int64_t g, int part, V* scale, V* offset) const {
    if (part == 0) fetch_ahead<kType>(panel, (first + g) * kInt8Columns);
    scales_of<kType>(block(g), column(g) + part * 16, scale, offset);
  }
};

// Some groups of a panel, expanded for many rows.
struct Tile {
  alignas(64) int32_t codes[kTileGroups][kSteps][kPanelRows];
  alignas(64) float scales[kTileGroups][2][kPanelRows];
  alignas(64) float offsets[kTileGroups][2][kPanelRows];
};

// kV vectors of it from row `row` on.
template <bool kOffset, int kV>
struct TileSource {
  const Tile& tile;
  int row;

  HWY_INLINE void codes(int64_t g, int step, IV* w) const {
    for (int v = 0; v < kV; ++v) w[v] = hn::Load(I(), tile.codes[g][step] + row + v * kL);
  }
  HWY_INLINE void scales(int64_t g, int part, V* scale, V* offset) const {
    for (int v = 0; v < kV; ++v) {
      scale[v] = hn::Load(kF, tile.scales[g][part] + row + v * kL);
      if constexpr (kOffset) offset[v] = hn::Load(kF, tile.offsets[g][part] + row + v * kL);
    }
  }
};

template <DType kType>
void expand_groups(const PanelSource<kType>& source, int count, Tile& tile) {
  constexpr Int8Kind kKind = int8_kind(kType);
  for (int g = 0; g < count; ++g) {
    for (int s = 0; s < kSteps; ++s) {
      IV w[kPanelV];
      source.codes(g, s, w);
      for (int v = 0; v < kPanelV; ++v) hn::Store(w[v], I(), tile.codes[g][s] + v * kL);
    }
    for (int part = 0; part < kKind.parts; ++part) {
      V scale[kPanelV], offset[kPanelV];
      scales_of<kType>(source.block(g), source.column(g) + part * 16, scale, offset);
      for (int v = 0; v < kPanelV; ++v) {
        hn::Store(scale[v], kF, tile.scales[g][part] + v * kL);
        if constexpr (kKind.offset) hn::Store(offset[v], kF, tile.offsets[g][part] + v * kL);
      }
    }
  }
}

template <Int8Kind kKind, int kRows = kTileRows>
void multiply_tile(const Tile& tile, int count, const Int8Group* x, int64_t groups, int rows,
                   float* acc) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_tile<kKind, kRows - 1>(tile, count, x, groups, rows, acc);
  }
  for (int row = 0; row < kPanelRows; row += 2 * kL) {
    add_groups<kKind, kRows, 2>(TileSource<kKind.offset, 2>{tile, row}, count, x, groups,
                                acc + row);
  }
}

template <DType kType, int kRows = kFewRows>
void multiply_few(const PanelSource<kType>& source, int64_t count, const Int8Group* x,
                  int64_t groups, int rows, float* acc) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_few<kType, kRows - 1>(source, count, x, groups, rows, acc);
    }
  }
  add_groups<int8_kind(kType), kRows, kPanelV>(source, count, x, groups, acc);
}

template <DType kType>
void multiply_int8(const std::byte* panel, int64_t first, int64_t end, const Int8Group* x,
                   int64_t groups, int rows, float* acc) {
  if (rows <= kFewRows) {
    return multiply_few<kType>({panel, first}, end - first, x + first, groups, rows, acc);
  }
  constexpr PanelLayout kLayout = panel_layout(kType);
  constexpr size_t kTileBytes = kLayout.block_bytes * kTileGroups * kInt8Columns / kLayout.block_k;
  const int blocks = (rows + kTileRows - 1) / kTileRows;
  Tile tile;
  for (int64_t g = first; g < end; g += kTileGroups) {
    const int count = static_cast<int>(std::min<int64_t>(kTileGroups, end - g));
    expand_groups<kType>({panel, g}, count, tile);
    const std::byte* const next = panel + static_cast<size_t>(g / kTileGroups + 1) * kTileBytes;
    for (int b = 0; b < blocks; ++b) {
      fetch({next, kTileBytes}, b, blocks);
      const int begin = rows * b / blocks, past = rows * (b + 1) / blocks;
      multiply_tile<int8_kind(kType)>(tile, count, x + begin * groups + g, groups, past - begin,
                                      acc + begin * kPanelRows);
    }
  }
}

}  // namespace
}  // namespace headrace::HWY_NAMESPACE
HWY_POP_ATTRIBUTES

// For the target that it was declared for, without VNNI.
HWY_BEFORE_NAMESPACE();
namespace headrace::HWY_NAMESPACE {

Int8Kernels int8_kernels() {
  return {
      HWY_TARGET == HWY_AVX2 ? "avx2" : "vnni",
#include "engine/ops/cpu/int8_table.inc"
  };
}

}  // namespace headrace::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
