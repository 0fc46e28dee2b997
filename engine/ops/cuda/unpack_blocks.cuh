// What a block does of expanding low-bit weights to rows of f16: some columns of a panel. Comes
// after warp_instructions.cuh, or what stands for it where there is no GPU
// (tests/ops/emulated_gpu.h).
#pragma once

#include <cstdint>

#include "engine/ops/cuda/expand_tile.cuh"
#include "engine/ops/packed_matrix.h"

namespace headrace::cuda {

// A block's shared memory: columns of a panel as they are packed, and as rows.
template <DType kType>
struct UnpackRoom {
  static constexpr PanelLayout kPanel = panel_layout(kType);
  static constexpr int kColumns = 256;
  static constexpr int kRow = kColumns * 2 + 16;  // bytes; eight rows are in different banks
  static constexpr int kPacked = kColumns / kPanel.block_k * static_cast<int>(kPanel.block_bytes);
  static constexpr int kBytes = kPacked + kPanelRows * kRow;
};

// Panel first + blockIdx.x, columns from blockIdx.y * kColumns on. `out`: row 0 of panel `first`,
// which begins at 16 bytes.
template <DType kType>
__device__ void unpack_block(const PackedMatrix& w, int64_t first, Half* out, char* shared) {
  using R = UnpackRoom<kType>;
  const auto thread = static_cast<int>(threadIdx.x);
  const int64_t k0 = static_cast<int64_t>(blockIdx.y) * R::kColumns;
  const int64_t left = w.cols - k0;
  const int columns = left < R::kColumns ? static_cast<int>(left) : R::kColumns;
  const int bytes = columns / R::kPanel.block_k * static_cast<int>(R::kPanel.block_bytes);
  const std::byte* const from =
      w.panel(first + blockIdx.x) + static_cast<int64_t>(blockIdx.y) * R::kPacked;
  for (int i = thread * 16; i < bytes; i += kExpandThreads * 16)
    copy_16(shared + i, from + i, true);
  end_copies();
  wait_for_copies<0>();
  __syncthreads();
  char* const rows = shared + R::kPacked;
  expand_tile<kType>(shared, columns, R::kRow, rows);
  __syncthreads();
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kPanelRows;
  const int64_t rows_left = w.rows - first * kPanelRows - row0;
  for (int i = thread; i < kPanelRows * R::kColumns / 8; i += kExpandThreads) {
    const int row = i / (R::kColumns / 8), k = i % (R::kColumns / 8) * 8;
    if (row >= rows_left || k >= columns) continue;
    *reinterpret_cast<uint4*>(out + (row0 + row) * w.cols + k0 + k) =
        *reinterpret_cast<const uint4*>(rows + row * R::kRow + k * 2);
  }
}

}  // namespace headrace::cuda
