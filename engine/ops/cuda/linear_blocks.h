// What a block of GPU threads does for a linear layer: some rows of x times one panel of packed
// weights, in the canonical order of ops/canonical.h (k ascending, one fused multiply-add each), so
// that a row's bits are those of the CPU path and the same in any batch. Block programs:
// ops/cuda/row_blocks.h.
//
// The weights of a few columns are expanded into the block's memory and used for all its rows. This
// is the plain way: it never meets the GPU's matrix units.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/both.h"
#include "engine/ops/canonical.h"
#include "engine/ops/cuda/row_blocks.h"
#include "engine/ops/panel_elements.h"

namespace headrace {

inline constexpr int kLinearRows = 32;     // of x, of a block
inline constexpr int kLinearColumns = 32;  // expanded at a time

struct LinearWork {
  const std::byte* panel;
  int64_t cols;
  const float* x;     // [rows][cols]
  int rows;           // at most kLinearRows
  int width;          // outputs of the panel that are there
  const float* bias;  // [width] or null
  float* y;           // [rows][stride], of which `width` columns are the panel's
  int64_t stride;
  bool gate;  // y = silu(y) * result, else y = result
};

constexpr int64_t linear_shared_floats() {
  return kLinearColumns * (kPanelRows + kLinearRows) + kLinearRows * kPanelRows;
}

template <DType kType, typename Block>
HEADRACE_BOTH void linear_tile(Block& block, const LinearWork& work) {
  float* const w = block.template shared<float>(kLinearColumns * kPanelRows);   // [k][output]
  float* const x = block.template shared<float>(kLinearRows * kLinearColumns);  // [row][k]
  float* const sums = block.template shared<float>(kLinearRows * kPanelRows);   // [row][output]
  // Calls f(i / width, i % width) for i < count * width.
  const auto for_each = [&](int count, int width, auto f) {
    block.each_thread([&](int t) {
      for (int i = t; i < count * width; i += block.threads()) f(i / width, i % width);
    });
  };
  for_each(work.rows, kPanelRows, [&](int row, int n) { sums[row * kPanelRows + n] = 0.0f; });
  for (int64_t k = 0; k < work.cols; k += kLinearColumns) {
    const int64_t left = work.cols - k;
    const int columns = static_cast<int>(left < kLinearColumns ? left : kLinearColumns);
    for_each(columns, kPanelRows, [&](int i, int n) {
      w[i * kPanelRows + n] = panel_weight<kType>(work.panel, n, k + i);
    });
    for_each(work.rows, columns, [&](int row, int i) {
      x[row * kLinearColumns + i] = work.x[row * work.cols + k + i];
    });
    for_each(work.rows, kPanelRows, [&](int row, int n) {
      float sum = sums[row * kPanelRows + n];
      for (int i = 0; i < columns; ++i) {
        sum = std::fma(x[row * kLinearColumns + i], w[i * kPanelRows + n], sum);
      }
      sums[row * kPanelRows + n] = sum;
    });
  }
  for_each(work.rows, work.width, [&](int row, int n) {
    const float sum = sums[row * kPanelRows + n];
    const float result = work.bias ? sum + work.bias[n] : sum;
    float& y = work.y[row * work.stride + n];
    y = work.gate ? silu_multiply_of(y, result) : result;
  });
}

}  // namespace headrace
