// What a block of the packed products' kernel does, with its shared memory: one panel of low-bit
// weights times a few rows of x. Comes after warp_instructions.cuh, or what stands for it where
// there is no GPU (tests/ops/emulated_gpu.h).
//
// Eight warps expand the next tile of columns to f16, as the tensor cores take it, while others
// multiply the one before. An output is summed up over ascending k, 16 at a time, by one warp: as
// algorithms of cuBLASLt do that do not split their sums.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/half.h"
#include "engine/ops/cuda/packed_product.h"
#include "engine/ops/panel_elements.h"

namespace headrace::cuda {

constexpr int kExpanders = 8;  // warps

// A block's threads and shared memory, for kTiles times eight rows of x.
template <DType kType, int kTiles>
struct PackedBlock {
  static constexpr PanelLayout kPanel = panel_layout(kType);
  static constexpr int kColumns = 256;          // of a tile
  static constexpr int kSteps = kColumns / 16;  // products of 16 columns
  // Half of the panel times eight rows of x each.
  static constexpr int kUnits = 2 * kTiles;
  static constexpr int kMultipliers = std::min(kUnits, 8);  // warps
  static constexpr int kThreads = (kExpanders + kMultipliers) * 32;

  // Tiles that are on their way, packed; of x, and of what is expanded, one is while another is
  // used.
  static constexpr int kAhead = 3;
  static constexpr int kPackedTile =
      kColumns / kPanel.block_k * static_cast<int>(kPanel.block_bytes);
  static constexpr int kXRow = kColumns * 2 + 16;  // bytes; eight rows are in different banks
  static constexpr int kXTile = kTiles * 8 * kXRow;
  static constexpr int kExpandedTile = kSteps * 2 * 32 * static_cast<int>(sizeof(uint4));
  static constexpr int kX = kAhead * kPackedTile;
  static constexpr int kExpanded = kX + 2 * kXTile;
  static constexpr int kBytes = kExpanded + 2 * kExpandedTile;

  __device__ static char* packed(char* shared, int tile) {
    return shared + static_cast<unsigned>(tile) % kAhead * kPackedTile;
  }
  __device__ static char* x(char* shared, int tile) {
    return shared + kX + static_cast<unsigned>(tile) % 2 * kXTile;
  }
  // [step][half of the panel][lane]: what the lane has of 16 x 16 weights.
  __device__ static uint4* expanded(char* shared, int tile) {
    return reinterpret_cast<uint4*>(shared + kExpanded +
                                    static_cast<unsigned>(tile) % 2 * kExpandedTile);
  }
};

// 16 x 16 weights are not rows of a panel in their order: row g of a half is the panel's row 2g,
// row g + 8 is 2g + 1, so that the codes of both lie side by side.
inline __device__ int panel_row(int half, int g, int later) { return half * 16 + 2 * g + later; }

// Codes of panel_row(0, g, 0), (0, g, 1), (1, g, 0) and (1, g, 1), column k of a block, before they
// are shifted to their signed meaning (see panel_code()).
template <DType kType>
__device__ void codes_of(const std::byte* block, int g, int k, int (&codes)[4]) {
  constexpr PanelLayout kPanel = panel_layout(kType);
  const std::byte* const low = block + kPanel.codes_offset + 2 * g;
  const auto two_bytes = [](const std::byte* at) {
    return static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(at));
  };
  // Of a plane: rows 2g and 2g + 16 side by side, then in the next byte 2g + 1 and 2g + 17.
  const auto take = [&](uint32_t both, int shift, int bits, int to) {
    const uint32_t mask = (1u << bits) - 1;
    codes[0] |= static_cast<int>(both >> shift & mask) << to;
    codes[1] |= static_cast<int>(both >> (shift + 8) & mask) << to;
    codes[2] |= static_cast<int>(both >> (shift + bits) & mask) << to;
    codes[3] |= static_cast<int>(both >> (shift + 8 + bits) & mask) << to;
  };
  const auto take_2_bits = [&](const std::byte* plane, int to) {
    take(two_bytes(plane + k / 2 * 16), k % 2 * 4, 2, to);
  };
  for (int& code : codes) code = 0;
  if constexpr (kPanel.low_bits == 8) {
    for (int half = 0; half < 2; ++half) {
      const uint32_t both = two_bytes(low + k * kPanelRows + half * 16);
      codes[2 * half] = static_cast<int>(both & 255u);
      codes[2 * half + 1] = static_cast<int>(both >> 8);
    }
    return;
  }
  const std::byte* const high = low + kPanel.block_k * kPanelRows * kPanel.low_bits / 8;
  if constexpr (kPanel.low_bits == 4) take(two_bytes(low + k * 16), 0, 4, 0);
  if constexpr (kPanel.low_bits == 2) take_2_bits(low, 0);
  if constexpr (kPanel.high_bits == 2) take_2_bits(high, kPanel.low_bits);
  if constexpr (kPanel.high_bits == 1) {
    take(two_bytes(high + k / 4 * 16), k % 4 * 2, 1, kPanel.low_bits);
  }
}

// Of the rows whose codes codes_of() gives, for columns [k, k + kScaleColumns) of a block.
template <DType kType>
__device__ void scales_of(const std::byte* block, int g, int k, Affine (&of)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) of[i] = panel_affine<kType>(block, panel_row(i / 2, g, i % 2), k);
}

// This lane's part of 32 x 16 weights, columns [k, k + 16) of a block, each with the bits of
// panel_weight() and to_half().
template <DType kType>
__device__ void expand_step(const std::byte* block, const Affine (&of)[4], int k, uint4* expanded) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int g = lane / 4;
  uint32_t pairs[4][2];  // of each row, of columns 2t and 2t + 1, and of those 8 columns on
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    float weights[4][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int codes[4];
      codes_of<kType>(block, g, k + lane % 4 * 2 + pair * 8 + i, codes);
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        weights[row][i] = weight_of<kType>(of[row], codes[row]);
      }
    }
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      pairs[row][pair] = pack_saturated(weights[row][0], weights[row][1]);
    }
  }
  expanded[lane] = {pairs[0][0], pairs[1][0], pairs[0][1], pairs[1][1]};
  expanded[32 + lane] = {pairs[2][0], pairs[3][0], pairs[2][1], pairs[3][1]};
}

// Of the panel's tiles: they come, and are expanded.
template <DType kType, int kTiles>
class Expander {
  using B = PackedBlock<kType, kTiles>;

 public:
  __device__ Expander(const std::byte* panel, int64_t bytes, char* shared)
      : panel_(panel + threadIdx.x * 16), end_(panel + bytes), shared_(shared) {}

  __device__ void load(int tile) {
    constexpr int kAtOnce = kExpanders * 32 * 16;
    char* const to = B::packed(shared_, tile) + threadIdx.x * 16;
    const std::byte* const from = panel_ + static_cast<int64_t>(tile) * B::kPackedTile;
#pragma unroll
    for (int i = 0; i < B::kPackedTile; i += kAtOnce) {
      const bool is_of_tile = i + static_cast<int>(threadIdx.x) * 16 < B::kPackedTile;
      if (is_of_tile && from + i < end_) copy_16(to + i, from + i, true);
    }
    end_copies();
  }

  __device__ void expand(int tile, int columns) {
    constexpr int kOfWarp = B::kSteps / kExpanders;
    constexpr int kOfScales = std::min(kOfWarp, kScaleColumns<kType> / 16);
    static_assert(kOfWarp % kOfScales == 0);
    const auto first = static_cast<int>(threadIdx.x / 32) * kOfWarp;
    const auto* const packed = reinterpret_cast<const std::byte*>(B::packed(shared_, tile));
    uint4* const to = B::expanded(shared_, tile);
    Affine of[4];
#pragma unroll
    for (int i = 0; i < kOfWarp; ++i) {
      const int step = first + i, k = step * 16;
      if (k >= columns) return;
      const std::byte* const block = packed + k / B::kPanel.block_k * B::kPanel.block_bytes;
      if (i % kOfScales == 0) {
        scales_of<kType>(block, static_cast<int>(threadIdx.x % 32) / 4, k % B::kPanel.block_k, of);
      }
      expand_step<kType>(block, of, k % B::kPanel.block_k, to + step * 64);
    }
  }

 private:
  const std::byte *const panel_, *const end_;
  char* const shared_;
};

inline __device__ void write_output(const PackedWork& work, int64_t row, int64_t n, float sum) {
  const HalfProduct& p = work.of.product;
  float value = p.scale * sum;
  const int64_t at = row * p.stride + n;
  if (p.result == HalfProduct::Result::kReluHalf) {
    if (p.bias) value += f16_to_f32(headrace::to_half(p.bias[n]).bits);
    const uint32_t rounded = pack(value < 0.0f ? 0.0f : value, 0.0f);
    static_cast<Half*>(p.y)[at] = {static_cast<uint16_t>(rounded)};
    return;
  }
  const bool adds = p.result == HalfProduct::Result::kAdded;
  const float before = adds ? static_cast<const float*>(work.added)[at] : 0.0f;
  const bool added_first = work.order == PackedWork::Order::kAddedFirst;
  if (adds && added_first) value += before;
  if (p.bias) value += p.bias[n];
  if (adds && !added_first) value += before;
  static_cast<float*>(p.y)[at] = value;
}

// Of x's tiles: they come, and are multiplied with what is expanded.
template <DType kType, int kTiles>
class Multiplier {
  using B = PackedBlock<kType, kTiles>;
  static constexpr int kOfWarp = B::kUnits / B::kMultipliers;
  static constexpr int kPieces = B::kColumns / 8;               // of 16 bytes, of a row of x
  static constexpr int kRows = B::kMultipliers * 32 / kPieces;  // that come at once
  static_assert(B::kMultipliers * 32 % kPieces == 0 && kTiles * 8 % kRows == 0);

 public:
  __device__ Multiplier(const HalfProduct& p, char* shared)
      : thread_(static_cast<int>(threadIdx.x) - kExpanders * 32),
        row_(thread_ / kPieces),
        column_(thread_ % kPieces * 8),
        rows_(static_cast<int>(p.rows)),
        inputs_(static_cast<int>(p.inputs)),
        x_(p.x + (row_ < rows_ ? row_ : 0) * p.inputs + column_),
        shared_(shared) {}

  // In place of rows that are not there comes another, as nobody wants what becomes of it.
  __device__ void load(int tile) {
    const int first = tile * B::kColumns;
    char* const to = B::x(shared_, tile) + row_ * B::kXRow + column_ * 2;
    if (first + column_ < inputs_) {
      const Half* from = x_ + first;
#pragma unroll
      for (int row = 0; row < kTiles * 8; row += kRows) {
        copy_16(to + row * B::kXRow, reinterpret_cast<const std::byte*>(from), true);
        if (row + row_ + kRows < rows_) from += kRows * inputs_;
      }
    }
    end_copies();
  }

  __device__ void multiply(int tile, int columns) {
    if (columns == B::kColumns) {
#pragma unroll
      for (int step = 0; step < B::kSteps; step += 2) multiply_steps(tile, step);
    } else {
#pragma unroll 1
      for (int step = 0; step < columns / 16; step += 2) multiply_steps(tile, step);
    }
  }

  __device__ void write(const PackedWork& work, int64_t first) const {
    const HalfProduct& p = work.of.product;
    const int lane = thread_ % 32;
#pragma unroll
    for (int u = 0; u < kOfWarp; ++u) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t n = first + panel_row(half(u), lane / 4, i / 2);
        const int64_t row = rows_of(u) + lane % 4 * 2 + i % 2;
        if (n < p.outputs && row < p.rows) write_output(work, row, n, sums_[u][i]);
      }
    }
  }

 private:
  __device__ int unit(int u) const { return thread_ / 32 + u * B::kMultipliers; }
  __device__ int half(int u) const { return unit(u) % 2; }
  __device__ int rows_of(int u) const { return unit(u) / 2 * 8; }

  // 32 columns.
  __device__ void multiply_steps(int tile, int step) {
    const int lane = thread_ % 32;
    const uint4* const weights = B::expanded(shared_, tile) + step * 64 + lane;
#pragma unroll
    for (int u = 0; u < kOfWarp; ++u) {
      // Four times eight columns of eight rows.
      const uint4 x = load_straight(B::x(shared_, tile) + (rows_of(u) + lane % 8) * B::kXRow +
                                    step * 32 + lane / 8 * 16);
      multiply_add(sums_[u], weights[half(u) * 32], x.x, x.y);
      multiply_add(sums_[u], weights[64 + half(u) * 32], x.z, x.w);
    }
  }

  const int thread_, row_, column_, rows_, inputs_;
  const Half* const x_;
  char* const shared_;
  float sums_[kOfWarp][4] = {};
};

// Each block has a panel of all the works' together.
template <DType kType, int kTiles>
__device__ void packed_product_block(const PackedWorks& works, char* shared) {
  using B = PackedBlock<kType, kTiles>;
  int64_t number = blockIdx.x;
  int which = 0;
  for (; number >= works.all[which].of.panels(); ++which) number -= works.all[which].of.panels();
  const PackedWork& work = works.all[which];
  const HalfProduct& p = work.of.product;
  const int tiles = static_cast<int>((p.inputs + B::kColumns - 1) / B::kColumns);
  const auto columns = [&](int tile) {  // that are there, a multiple of 32
    const int64_t left = p.inputs - static_cast<int64_t>(tile) * B::kColumns;
    return left < B::kColumns ? static_cast<int>(left) : B::kColumns;
  };

  // Both come to each barrier when tile i + 1 is there to be expanded, and tile i of x; nobody uses
  // the places of those before them any more.
  if (threadIdx.x < kExpanders * 32) {
    const PackedMatrix& w = work.of.w;
    const auto bytes = static_cast<int64_t>(panel_bytes(kType, p.inputs));
    const int64_t panel = work.of.first + number;
    const std::byte* const from =
        panel < w.split ? w.panels + panel * bytes : w.rest + (panel - w.split) * bytes;
    Expander<kType, kTiles> expander(from, bytes, shared);
    for (int tile = 0; tile < B::kAhead - 1; ++tile) expander.load(tile);
#pragma unroll 1
    for (int i = -1; i < tiles; ++i) {
      wait_for_copies<B::kAhead - 2>();
      wait_for_block();
      expander.load(i + B::kAhead);
      if (i + 1 < tiles) expander.expand(i + 1, columns(i + 1));
    }
  } else {
    Multiplier<kType, kTiles> multiplier(p, shared);
#pragma unroll 1
    for (int i = -1; i < tiles; ++i) {
      wait_for_copies<0>();
      wait_for_block();
      multiplier.load(i + 1);
      if (i >= 0) multiplier.multiply(i, columns(i));
    }
    multiplier.write(work, number * kPanelRows);
  }
}

}  // namespace headrace::cuda
