// A tile of a panel of low-bit weights to rows of f16, in shared memory, by all threads of a block.
// Comes after warp_instructions.cuh, or what stands for it where there is no GPU
// (tests/ops/emulated_gpu.h).
#pragma once

#include <cmath>
#include <cstdint>

#include "engine/half.h"
#include "engine/ops/panel_elements.h"

namespace headrace::cuda {

constexpr int kExpandThreads = 256;
constexpr int kExpanded = 16;  // columns of a row that a thread expands at a time

// As panel_weight(): with an offset the product is exact, of 17 bits of scale at most and 8 of
// code.
template <DType kType>
__device__ float weight_of(const Affine& of, int unsigned_code) {
  const auto code = static_cast<float>(signed_code<kType>(unsigned_code));
  return kHasOffset<kType> ? std::fma(of.scale, code, of.offset) : of.scale * code;
}

// Whole blocks of the format, packed, of `columns` columns (a multiple of 32), to rows that begin
// `row_bytes` apart, at 16 bytes. Each weight has the bits of panel_weight() and to_half().
template <DType kType>
__device__ void expand_tile(const char* packed, int columns, int row_bytes, char* rows) {
  constexpr PanelLayout kPanel = panel_layout(kType);
  static_assert(kScaleColumns<kType> % kExpanded == 0);
  const auto row = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  for (int first = warp * kExpanded; first < columns; first += kExpandThreads / 32 * kExpanded) {
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
    auto* const out = reinterpret_cast<uint4*>(rows + row * row_bytes + first * 2);
    out[0] = {pairs[0], pairs[1], pairs[2], pairs[3]};
    out[1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
  }
}

}  // namespace headrace::cuda
