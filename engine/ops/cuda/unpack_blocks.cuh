// What a block does of expanding low-bit weights to rows of f16: some columns of a panel. Comes
// after warp_instructions.cuh, or what stands for it where there is no GPU
// (tests/ops/emulated_gpu.h).
#pragma once

#include <cstdint>

#include "engine/half.h"
#include "engine/ops/packed_matrix.h"
#include "engine/ops/panel_elements.h"

namespace headrace::cuda {

constexpr int kUnpackThreads = 256;
constexpr int kExpanded = 16;  // columns of a row that a thread expands at a time

// A block's shared memory: columns of a panel as they are packed, and as rows.
template <DType kType>
struct UnpackRoom {
  static constexpr PanelLayout kPanel = panel_layout(kType);
  static constexpr int kColumns = 256;
  static constexpr int kRow = kColumns * 2 + 16;  // bytes; eight rows are in different banks
  static constexpr int kPacked = kColumns / kPanel.block_k * static_cast<int>(kPanel.block_bytes);
  static constexpr int kBytes = kPacked + kPanelRows * kRow;
};

// What is packed of `columns` columns, a multiple of 32, to rows. Each weight has the bits of
// panel_weight() and to_half().
template <DType kType>
__device__ void expand_columns(const char* packed, int columns, char* rows) {
  using R = UnpackRoom<kType>;
  constexpr PanelLayout kPanel = R::kPanel;
  static_assert(kScaleColumns<kType> % kExpanded == 0);
  const auto row = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  for (int first = warp * kExpanded; first < columns; first += kUnpackThreads / 32 * kExpanded) {
    const auto* const block =
        reinterpret_cast<const std::byte*>(packed) + first / kPanel.block_k * kPanel.block_bytes;
    const int k = first % kPanel.block_k;
    const Affine of = panel_affine<kType>(block, row, k);
    const auto weight = [&](int at) {
      return weight_of<kType>(of, panel_code<kType>(block, row, at));
    };
    uint32_t pairs[kExpanded / 2];
#pragma unroll
    for (int i = 0; i < kExpanded; i += 2) {
      pairs[i / 2] = pack_saturated(weight(k + i), weight(k + i + 1));
    }
    auto* const out = reinterpret_cast<uint4*>(rows + row * R::kRow + first * 2);
    out[0] = {pairs[0], pairs[1], pairs[2], pairs[3]};
    out[1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
  }
}

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
  for (int i = thread * 16; i < bytes; i += kUnpackThreads * 16) {
    copy_16(shared + i, from + i, true);
  }
  end_copies();
  wait_for_copies<0>();
  __syncthreads();
  char* const rows = shared + R::kPacked;
  expand_columns<kType>(shared, columns, rows);
  __syncthreads();
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kPanelRows;
  const int64_t rows_left = w.rows - first * kPanelRows - row0;
  for (int i = thread; i < kPanelRows * R::kColumns / 8; i += kUnpackThreads) {
    const int row = i / (R::kColumns / 8), k = i % (R::kColumns / 8) * 8;
    if (row >= rows_left || k >= columns) continue;
    *reinterpret_cast<uint4*>(out + (row0 + row) * w.cols + k0 + k) =
        *reinterpret_cast<const uint4*>(rows + row * R::kRow + k * 2);
  }
}

}  // namespace headrace::cuda
