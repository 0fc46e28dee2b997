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

#include "engine/ops/cpu/vector_int8_tile.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#else
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR)
#endif
namespace headrace::HWY_NAMESPACE {
namespace {

constexpr int kTileGroups = 8;  // expanded at a time: 8 KiB of codes
constexpr int kTileRows = kL == 16 ? 6 : 3;
constexpr int kFewRows = kL == 16 ? 4 : 2;  // for so many nothing is expanded

using Tile = ExpandedGroups<kTileGroups>;

// ---- Rows ----

void quantise(const float* x, int64_t groups, Int8Block* out, int slot) {
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
        hn::StoreU(hn::DemoteTo(bytes, codes), bytes, out[g].codes[slot] + i * kL);
        IV& half = sum[i / (kGroupV / 2)];
        half = hn::Add(half, codes);
      }
      for (int h = 0; h < 2; ++h) sums[h] = hn::GetLane(hn::SumOfLanes(I(), sum[h]));
    } else {
      std::memset(out[g].codes[slot], 0, kInt8Columns);
    }
    finish_group(scale, sums[0], sums[1], out[g], slot);
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
HWY_INLINE void add_dots(const Source& source, int64_t g, int part, const int8_t (*x)[kInt8Columns],
                         IV (*dot)[kV]) {
  constexpr int kPartSteps = kSteps / kKind.parts;
#if HWY_TARGET == HWY_AVX3
  for (int s = part * kPartSteps; s < (part + 1) * kPartSteps; ++s) {
    IV w[kV];
    source.codes(g, s, w);
    for (int m = 0; m < kRows; ++m) {
      const IV q = broadcast(x[m] + s * 4);
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
        const IV q = broadcast(x[m] + (s + t) * 4);
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

// acc[m][32] += kRows rows, from a slot of `count` blocks on, times as many groups of codes.
// Source, as above, and scales(g, part, scale, offset).
template <Int8Kind kKind, int kRows, int kV, typename Source>
HWY_INLINE void add_groups(const Source& source, int64_t count, const Int8Block* x, int slot,
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
          dot[m][v] = less_zero<kKind.zero>(x->minus_sum[sums][slot + m]);
        }
      }
      add_dots<kKind, kRows, kV>(source, g, part, x->codes + slot, dot);
      V scale[kV], offset[kV];
      source.scales(g, part, scale, offset);
      for (int m = 0; m < kRows; ++m) {
        const V x_scale = hn::Set(kF, x->scale[slot + m]);
        const V x_sum = hn::Set(kF, x->scaled_sum[sums][slot + m]);
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

// kV vectors of a tile from row `row` on.
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

template <Int8Kind kKind, int kRows = kTileRows>
void multiply_tile(const Tile& tile, int count, const Int8Block* x, int slot, int rows,
                   float* acc) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_tile<kKind, kRows - 1>(tile, count, x, slot, rows, acc);
  }
  for (int row = 0; row < kPanelRows; row += 2 * kL) {
    add_groups<kKind, kRows, 2>(TileSource<kKind.offset, 2>{tile, row}, count, x, slot, acc + row);
  }
}

template <DType kType, int kRows = kFewRows>
void multiply_few(const PanelSource<kType>& source, int64_t count, const Int8Block* x, int slot,
                  int rows, float* acc) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_few<kType, kRows - 1>(source, count, x, slot, rows, acc);
  }
  add_groups<int8_kind(kType), kRows, kPanelV>(source, count, x, slot, acc);
}

// multiply(row, rows) for all rows of x, at most kMost at a time and those of one block.
template <int kMost, typename Multiply>
HWY_INLINE void in_blocks(const Int8Rows& x, int rows, Multiply multiply) {
  for (int first = 0; first < rows;) {
    const int here = std::min(rows - first, kInt8Rows - x.slot(first));
    const int parts = (here + kMost - 1) / kMost;
    for (int i = 0; i < parts; ++i) {
      const int begin = here * i / parts, end = here * (i + 1) / parts;
      multiply(first + begin, end - begin);
    }
    first += here;
  }
}

template <DType kType>
void multiply_int8(const std::byte* panel, int64_t first, int64_t end, const Int8Rows& x, int rows,
                   float* acc) {
  if (rows <= kFewRows) {
    return in_blocks<kFewRows>(x, rows, [&](int row, int count) {
      multiply_few<kType>({panel, first}, end - first, x.block(row) + first, x.slot(row), count,
                          acc + row * kPanelRows);
    });
  }
  constexpr PanelLayout kLayout = panel_layout(kType);
  constexpr size_t kTileBytes = kLayout.block_bytes * kTileGroups * kInt8Columns / kLayout.block_k;
  Tile tile;
  for (int64_t g = first; g < end; g += kTileGroups) {
    const int count = static_cast<int>(std::min<int64_t>(kTileGroups, end - g));
    expand_groups<kType, 0>({panel, g}, count, tile);
    const std::byte* const next = panel + static_cast<size_t>(g / kTileGroups + 1) * kTileBytes;
    in_blocks<kTileRows>(x, rows, [&](int row, int here) {
      fetch({next, kTileBytes}, row, row + here, rows);
      multiply_tile<int8_kind(kType)>(tile, count, x.block(row) + g, x.slot(row), here,
                                      acc + row * kPanelRows);
    });
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
