// What a block of the packed products' kernel does, with its shared memory: one panel of low-bit
// weights times a few rows of x. Comes after warp_instructions.cuh, or what stands for it where
// there is no GPU (tests/ops/emulated_gpu.h).
//
// All warps expand the next tile of columns to f16 while some of them multiply the one before. An
// output is summed up over ascending k, 16 at a time, by one warp: as algorithms of cuBLASLt do
// that do not split their sums.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/half.h"
#include "engine/ops/cuda/expand_tile.cuh"
#include "engine/ops/cuda/packed_product.h"

namespace headrace::cuda {

constexpr int kPackedThreads = kExpandThreads;
constexpr int kPackedWarps = kPackedThreads / 32;

// A block's shared memory, for kTiles times eight rows of x.
template <DType kType, int kTiles>
struct PackedRoom {
  static constexpr PanelLayout kPanel = panel_layout(kType);
  static constexpr int kColumns = std::max(128, kPanel.block_k);  // of a tile
  static constexpr int kRow = kColumns * 2 + 16;  // bytes; eight rows are in different banks
  static constexpr int kPackedTile =
      kColumns / kPanel.block_k * static_cast<int>(kPanel.block_bytes);
  static constexpr int kAhead = 4, kXAhead = 3;  // tiles that are on their way
  static constexpr int kXSlots = kXAhead + 1;
  static constexpr int kWaiting = std::min(kAhead - 2, kXAhead - 1);  // of them, unfinished

  static constexpr int kX = kAhead * kPackedTile;
  static constexpr int kXTile = kTiles * 8 * kRow;
  static constexpr int kHalf = kX + kXSlots * kXTile;
  static constexpr int kHalfTile = kPanelRows * kRow;
  static constexpr int kBytes = kHalf + 2 * kHalfTile;

  __device__ static char* packed(char* shared, int tile) {
    return shared + tile % kAhead * kPackedTile;
  }
  __device__ static char* x(char* shared, int tile) {
    return shared + kX + tile % kXSlots * kXTile;
  }
  __device__ static char* half(char* shared, int tile) {
    return shared + kHalf + tile % 2 * kHalfTile;
  }
};

// Columns of a tile that are there, a multiple of 32.
template <int kColumns>
__device__ int columns_of(int64_t cols, int tile) {
  const int64_t left = cols - static_cast<int64_t>(tile) * kColumns;
  return left < kColumns ? static_cast<int>(left) : kColumns;
}

template <DType kType, int kTiles>
__device__ void load_packed(const std::byte* panel, int tile, int columns, char* shared) {
  using R = PackedRoom<kType, kTiles>;
  const int bytes = columns / R::kPanel.block_k * static_cast<int>(R::kPanel.block_bytes);
  const std::byte* const from = panel + static_cast<int64_t>(tile) * R::kPackedTile;
  char* const to = R::packed(shared, tile);
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kPackedThreads * 16) {
    copy_16(to + i, from + i, true);
  }
}

// Rows that are not there are zero.
template <DType kType, int kTiles>
__device__ void load_x(const HalfProduct& p, int tile, int columns, char* shared) {
  using R = PackedRoom<kType, kTiles>;
  constexpr int kPieces = R::kColumns / 8;  // of 16 bytes, of a row
  char* const to = R::x(shared, tile);
  for (int i = static_cast<int>(threadIdx.x); i < kTiles * 8 * kPieces; i += kPackedThreads) {
    const int row = i / kPieces, k = i % kPieces * 8;
    if (k >= columns) continue;
    const bool is_there = row < p.rows;
    const Half* const from =
        p.x + (is_there ? row : 0) * p.inputs + static_cast<int64_t>(tile) * R::kColumns + k;
    copy_16(to + row * R::kRow + k * 2, reinterpret_cast<const std::byte*>(from), is_there);
  }
}

// The 16 x 8 outputs that a warp sums up: half of the panel, eight rows of x.
struct PackedUnit {
  int half, tile;
  __device__ explicit PackedUnit(int unit) : half(unit % 2), tile(unit / 2) {}
};

template <DType kType, int kTiles>
__device__ void multiply_tile(int tile, int columns, const PackedUnit& unit, char* shared,
                              float (&sums)[4]) {
  using R = PackedRoom<kType, kTiles>;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane % 8, matrix = lane / 8;
  // Weights: rows 0 and 8, then the same eight columns further on. x: four times eight columns.
  const char* const w =
      R::half(shared, tile) + (unit.half * 16 + matrix % 2 * 8 + row) * R::kRow + matrix / 2 * 16;
  const char* const x = R::x(shared, tile) + (unit.tile * 8 + row) * R::kRow + matrix * 16;
  for (int k = 0; k < columns; k += 32) {
    const uint4 b = load_straight(x + k * 2);
    multiply_add(sums, load_straight(w + k * 2), b.x, b.y);
    multiply_add(sums, load_straight(w + k * 2 + 32), b.z, b.w);
  }
}

__device__ inline void write_output(const PackedWork& work, int64_t row, int64_t n, float sum) {
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

__device__ inline int64_t panels_of(const PackedWork& work) {
  return (work.of.product.outputs + kPanelRows - 1) / kPanelRows;
}

// Each block has a panel of all the products' together.
template <DType kType, int kTiles>
__device__ void packed_product_block(const PackedWorks& works, char* shared) {
  using R = PackedRoom<kType, kTiles>;
  constexpr int kUnits = 2 * kTiles, kOfWarp = (kUnits + kPackedWarps - 1) / kPackedWarps;
  const auto warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  int64_t number = blockIdx.x;
  int which = 0;
  while (number >= panels_of(works.all[which])) number -= panels_of(works.all[which++]);
  const PackedWork& work = works.all[which];
  const HalfProduct& p = work.of.product;
  const std::byte* const panel = work.of.w.panel(work.of.first + number);
  const int tiles = static_cast<int>((p.inputs + R::kColumns - 1) / R::kColumns);
  const auto columns = [&](int tile) { return columns_of<R::kColumns>(p.inputs, tile); };
  // Packed ones of tile i + kAhead and x of tile i + kXAhead are a group.
  const auto load = [&](int i) {
    const int packed = i + R::kAhead, x = i + R::kXAhead;
    if (packed >= 0 && packed < tiles) {
      load_packed<kType, kTiles>(panel, packed, columns(packed), shared);
    }
    if (x >= 0 && x < tiles) load_x<kType, kTiles>(p, x, columns(x), shared);
    end_copies();
  };
  float sums[kOfWarp][4] = {};
  for (int i = -R::kAhead; i < -1; ++i) load(i);
  for (int i = -1; i < tiles; ++i) {
    // Packed ones of tile i + 1 and x of tile i are there, and nobody uses those before them.
    wait_for_copies<R::kWaiting>();
    __syncthreads();
    load(i);
    if (i >= 0) {
#pragma unroll
      for (int u = 0; u < kOfWarp; ++u) {
        const int unit = warp + u * kPackedWarps;
        if (unit >= kUnits) break;
        multiply_tile<kType, kTiles>(i, columns(i), PackedUnit(unit), shared, sums[u]);
      }
    }
    if (i + 1 < tiles) {
      expand_tile<kType>(R::packed(shared, i + 1), columns(i + 1), R::kRow, R::half(shared, i + 1));
    }
  }
  const int64_t first = number * kPanelRows;
#pragma unroll
  for (int u = 0; u < kOfWarp; ++u) {
    const PackedUnit unit(warp + u * kPackedWarps);
    if (unit.tile >= kTiles) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t n = first + unit.half * 16 + lane / 4 + i / 2 * 8;
      const int64_t row = unit.tile * 8 + lane % 4 * 2 + i % 2;
      if (n < p.outputs && row < p.rows) write_output(work, row, n, sums[u][i]);
    }
  }
}

}  // namespace headrace::cuda
