// Groups of a panel's codes, as they lie or expanded for many rows: included once per Highway
// target by vector_int8.cpp and vector_int8_amx.cpp, after vector_int8_codes.h.

#if defined(HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_TILE_H) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_TILE_H
#undef HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_TILE_H
#else
#define HEADRACE_ENGINE_OPS_CPU_VECTOR_INT8_TILE_H
#endif

#include "engine/ops/cpu/vector_int8_codes.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

#if HWY_TARGET == HWY_AVX3
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")
#else
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR)
#endif
namespace headrace::HWY_NAMESPACE {

inline constexpr int kSteps = kInt8Columns / 4;  // products of four columns in a group

// Bytes less this.
inline IV less(IV codes, int by) {
  const hn::Repartition<int8_t, decltype(I())> bytes;
  const auto v = hn::Sub(hn::BitCast(bytes, codes), hn::Set(bytes, static_cast<int8_t>(by)));
  return hn::BitCast(I(), v);
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
template <int kGroups>
struct ExpandedGroups {
  alignas(64) int32_t codes[kGroups][kSteps][kPanelRows];
  alignas(64) float scales[kGroups][2][kPanelRows];
  alignas(64) float offsets[kGroups][2][kPanelRows];
};

// Codes less kLess, which is 0 at least; they may be negative then.
template <DType kType, int kLess, int kGroups>
void expand_groups(const PanelSource<kType>& source, int count, ExpandedGroups<kGroups>& tile) {
  constexpr Int8Kind kKind = int8_kind(kType);
  for (int g = 0; g < count; ++g) {
    for (int s = 0; s < kSteps; ++s) {
      IV w[kPanelV];
      source.codes(g, s, w);
      for (int v = 0; v < kPanelV; ++v) {
        if constexpr (kLess > 0) w[v] = less(w[v], kLess);
        hn::Store(w[v], I(), tile.codes[g][s] + v * kL);
      }
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

}  // namespace headrace::HWY_NAMESPACE
HWY_POP_ATTRIBUTES

#endif
#endif
