// Linear layers in integers (ops/int8.h) by tile registers (AMX), where there are rows enough. They
// multiply 16 rows by 16 outputs and the columns of one scale at a time, exactly; scales are
// applied as without them, so the bits are the same. Source: Intel 64 and IA-32 Architectures
// Software Developer's Manual, volume 1, chapter 18.

#include <algorithm>
#include <span>

#include "engine/ops/cpu/kernels.h"
#include "engine/ops/packed_matrix.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/cpu/vector_int8_amx.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "engine/ops/cpu/vector_int8_tile.h"

#if HWY_TARGET == HWY_AVX3

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni,amx-tile,amx-int8")
namespace headrace::HWY_NAMESPACE {
namespace {

constexpr int kOutputs = 16;
constexpr int kTileGroups = 8;  // expanded at a time: 8 KiB of codes
using Tile = ExpandedGroups<kTileGroups>;

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// The intrinsics of GCC do not say what memory they read.
template <typename T>
void written(const T& object) {
  __asm__ volatile("" : : "r"(&object) : "memory");
}

// Registers 0 and 1 are sums [rows][outputs], 2 is x [rows][columns] and 3 codes [columns / 4]
// [outputs][4].
void configure(int columns) {
  TileConfig config;
  const auto set = [&](int tile, int rows, int bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.row_bytes[tile] = static_cast<uint16_t>(bytes);
  };
  set(0, kInt8Rows, kOutputs * 4);
  set(1, kInt8Rows, kOutputs * 4);
  set(2, kInt8Rows, columns);
  set(3, columns / 4, kOutputs * 4);
  written(config);
  _tile_loadconfig(&config);
}

// What a format's codes need beside their scales.
struct AmxKind {
  bool is_signed;  // the zero point has been taken off them
  bool offset;
  int parts;
};

constexpr AmxKind amx_kind(DType dtype) {
  const Int8Kind kind = int8_kind(dtype);
  return {kind.zero != 0, kind.offset, kind.parts};
}

// kInt8Rows rows times kOutputs outputs of a tile, in steps: a step is a group, or one of its
// parts.
template <AmxKind kKind>
struct Product {
  static constexpr int kColumns = kInt8Columns / kKind.parts;

  const Tile& tile;
  int output;
  const Int8Block* x;  // by groups

  const int8_t* x_at(int step) const {
    return x[step / kKind.parts].codes[0] + step % kKind.parts * kColumns;
  }
  const int32_t* codes_at(int step) const {
    return tile.codes[step / kKind.parts][step % kKind.parts * (kColumns / 4)] + output;
  }
};

// Begins the dot products of a step; the instructions' operands must be numbers.
#define HEADRACE_BEGIN(register, p, step)             \
  _tile_zero(register);                               \
  _tile_loadd(2, (p).x_at(step), kInt8Columns);       \
  _tile_loadd(3, (p).codes_at(step), kPanelRows * 4); \
  if constexpr (kKind.is_signed) {                    \
    _tile_dpbssd(register, 2, 3);                     \
  } else {                                            \
    _tile_dpbsud(register, 2, 3);                     \
  }

// a[m][kOutputs] += a step's dot products times their scales, and offsets.
template <AmxKind kKind>
HWY_INLINE void add_scaled(const Product<kKind>& p, int step, const int32_t* dots,
                           V (&a)[kInt8Rows]) {
  const int g = step / kKind.parts, part = step % kKind.parts;
  const Int8Block& x = p.x[g];
  const V scale = hn::Load(kF, p.tile.scales[g][part] + p.output);
  V offset = hn::Zero(kF);
  if constexpr (kKind.offset) offset = hn::Load(kF, p.tile.offsets[g][part] + p.output);
#pragma GCC unroll 16
  for (int m = 0; m < kInt8Rows; ++m) {
    const V dot = hn::ConvertTo(kF, hn::Load(I(), dots + m * kOutputs));
    a[m] = hn::MulAdd(dot, hn::Mul(hn::Set(kF, x.scale[m]), scale), a[m]);
    if constexpr (kKind.offset) {
      const float* const sums = x.scaled_sum[kKind.parts == 1 ? kWhole : part];
      a[m] = hn::MulAdd(hn::Set(kF, sums[m]), offset, a[m]);
    }
  }
}

// acc[m][32] += `steps` steps of a tile times all rows of `blocks` blocks, `groups` apart. While
// the dot products of a step are scaled, those of the next one are under way.
template <AmxKind kKind>
void multiply_blocks(const Tile& tile, int steps, const Int8Block* x, int64_t groups, int blocks,
                     float* acc) {
  constexpr int kHalves = kPanelRows / kOutputs;
  const auto product = [&](int i) {
    return Product<kKind>{tile, i % kHalves * kOutputs, x + i / kHalves * groups};
  };
  alignas(64) int32_t even[kInt8Rows * kOutputs], odd[kInt8Rows * kOutputs];
  HEADRACE_BEGIN(0, product(0), 0)
  for (int i = 0; i < blocks * kHalves; ++i) {
    const Product<kKind> p = product(i);
    float* const sums = acc + i / kHalves * kInt8Rows * kPanelRows + p.output;
    V a[kInt8Rows];
#pragma GCC unroll 16
    for (int m = 0; m < kInt8Rows; ++m) a[m] = hn::LoadU(kF, sums + m * kPanelRows);
    for (int step = 0; step < steps; step += 2) {
      const bool another = step + 1 < steps;
      if (another) {
        HEADRACE_BEGIN(1, p, step + 1)
      }
      _tile_stored(0, even, kOutputs * 4);
      if (step > 0) add_scaled(p, step - 1, odd, a);
      if (step + 2 < steps) {
        HEADRACE_BEGIN(0, p, step + 2)
      } else if (i + 1 < blocks * kHalves) {
        HEADRACE_BEGIN(0, product(i + 1), 0)
      }
      if (another) _tile_stored(1, odd, kOutputs * 4);
      add_scaled(p, step, even, a);
    }
    if (steps % 2 == 0) add_scaled(p, steps - 1, odd, a);
#pragma GCC unroll 16
    for (int m = 0; m < kInt8Rows; ++m) hn::StoreU(a[m], kF, sums + m * kPanelRows);
  }
}
#undef HEADRACE_BEGIN

const Int8Kernels& without_tiles() {
  static const Int8Kernels table = int8_kernels();
  return table;
}

// Whole blocks of rows; the others go without tile registers.
template <DType kType>
void multiply_int8(const std::byte* panel, int64_t first, int64_t end, const Int8Rows& x, int rows,
                   float* acc) {
  const auto multiply_rest = [&](int row, int count) {
    if (count == 0) return;
    without_tiles().multiply_panel[static_cast<int>(kType)](panel, first, end, x.from(row), count,
                                                            acc + row * kPanelRows);
  };
  const int before = std::min(rows, (kInt8Rows - x.slot(0)) % kInt8Rows);
  const int blocks = (rows - before) / kInt8Rows, past = before + blocks * kInt8Rows;
  if (blocks == 0) return multiply_rest(0, rows);
  multiply_rest(0, before);
  multiply_rest(past, rows - past);
  constexpr AmxKind kKind = amx_kind(kType);
  constexpr PanelLayout kLayout = panel_layout(kType);
  constexpr size_t kTileBytes = kLayout.block_bytes * kTileGroups * kInt8Columns / kLayout.block_k;
  configure(kInt8Columns / kKind.parts);
  Tile tile;
  for (int64_t g = first; g < end; g += kTileGroups) {
    const int count = static_cast<int>(std::min<int64_t>(kTileGroups, end - g));
    expand_groups<kType, int8_kind(kType).zero>({panel, g}, count, tile);
    written(tile);
    const std::byte* const next = panel + static_cast<size_t>(g / kTileGroups + 1) * kTileBytes;
    fetch({next, kTileBytes}, 0, 1, 1);
    multiply_blocks<kKind>(tile, count * kKind.parts, x.block(before) + g, x.groups, blocks,
                           acc + before * kPanelRows);
  }
  _tile_release();
}

void quantise(const float* x, int64_t groups, Int8Block* out, int slot) {
  without_tiles().quantise(x, groups, out, slot);
}

}  // namespace
}  // namespace headrace::HWY_NAMESPACE
HWY_POP_ATTRIBUTES

// For the target that it was declared for.
HWY_BEFORE_NAMESPACE();
namespace headrace::HWY_NAMESPACE {

Int8Kernels amx_kernels() {
  return {
      "amx",
#include "engine/ops/cpu/int8_table.inc"
  };
}

}  // namespace headrace::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
