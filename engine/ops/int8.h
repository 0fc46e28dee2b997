// Linear layers in 8-bit integers (--math int8), for weights that have codes. Canonical as
// ops/canonical.h is: every target gives the same bits, and no row depends on another.
//
// Rows are quantised by groups of 32 columns, in float32, every operation rounded:
//   a = max |x| of the group
//   a < 2^-100:               scale 0, codes 0
//   a is infinite, or a NaN:  scale NaN, codes 0, so that all outputs of the row become NaN
//   else                      scale = a / 127, code = x * (127 / a) rounded to nearest, ties to
//                             even: always within -127 .. 127
// A weight is d * c + m with an integer c, less its zero point, and m only in formats that have one
// (panel_affine, signed_code in panel_elements.h); d and m are those of the weight's own group of
// 16 columns (Q2_K, Q3_K, Q6_K) or of more. Over parts of 16 columns in those formats, else of 32,
// ascending, from acc = +0:
//   acc = fma(float(sum of code * c), scale * d, acc)
//   acc = fma(scale * float(sum of code), m, acc)       in formats with m
// The sums are exact: none exceeds 32 * 127 * 255 < 2^24 in magnitude, so they are exact as floats,
// too. The bias is added last.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/checkpoint/dtype.h"

namespace headrace {

inline constexpr int kInt8Columns = 32;
inline constexpr float kInt8Most = 127.0f;
inline constexpr float kInt8Least = 0x1p-100f;  // a group that is smaller is one of zeros

inline constexpr int kInt8Rows = 16;
inline constexpr int kWhole = 2;  // index of the sum of all codes

// A group of columns of kInt8Rows rows, as linear layers read it; rows are slots of it.
struct alignas(64) Int8Block {
  int8_t codes[kInt8Rows][kInt8Columns];
  float scale[kInt8Rows];
  // Sums of the first 16 codes, of the others and of all: negated, and times the scale.
  int32_t minus_sum[3][kInt8Rows];
  float scaled_sum[3][kInt8Rows];
};

inline int64_t int8_blocks(int64_t rows) { return (rows + kInt8Rows - 1) / kInt8Rows; }

// A view of quantised rows, `first` of a matrix and those after it: blocks [rows / 16][groups], row
// r in slot r % 16 of block row r / 16.
struct Int8Rows {
  const Int8Block* blocks = nullptr;
  int64_t groups = 0;  // of a row
  int64_t first = 0;

  Int8Rows from(int64_t row) const { return {blocks, groups, first + row}; }
  // Group 0 of a row's block, and the row's place in it.
  const Int8Block* block(int64_t row) const { return blocks + (first + row) / kInt8Rows * groups; }
  int slot(int64_t row) const { return static_cast<int>((first + row) % kInt8Rows); }
};

// True if the format has codes to multiply; the others stay in float32.
inline bool has_codes(DType dtype) { return !is_plain(dtype); }

// The scale of a group by the largest magnitude in it, which is a NaN if any element is.
inline float int8_scale(float most) {
  if (!std::isfinite(most)) return std::numeric_limits<float>::quiet_NaN();
  return most < kInt8Least ? 0.0f : most / kInt8Most;
}

// Whatever depends on scale and sums of the codes alone.
inline void finish_group(float scale, int first_sum, int second_sum, Int8Block& block, int slot) {
  block.scale[slot] = scale;
  const int sums[] = {first_sum, second_sum, first_sum + second_sum};
  for (int i = 0; i < 3; ++i) {
    block.minus_sum[i][slot] = -sums[i];
    block.scaled_sum[i][slot] = scale * static_cast<float>(sums[i]);
  }
}

// Quantises 32 floats.
inline void quantise_group(const float* x, Int8Block& block, int slot) {
  uint32_t bits = 0;  // of a magnitude; a NaN's are the largest
  for (int i = 0; i < kInt8Columns; ++i) {
    bits = std::max(bits, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  }
  const float most = std::bit_cast<float>(bits), scale = int8_scale(most);
  int sums[2] = {0, 0};
  const float factor = scale > 0.0f ? kInt8Most / most : 0.0f;
  for (int i = 0; i < kInt8Columns; ++i) {
    int8_t& code = block.codes[slot][i];
    code = scale > 0.0f ? static_cast<int8_t>(std::nearbyint(x[i] * factor)) : int8_t{0};
    sums[i / 16] += code;
  }
  finish_group(scale, sums[0], sums[1], block, slot);
}

}  // namespace headrace
