// Random weight matrices in every storage format, as a checkpoint would hold them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/checkpoint/dtype.h"
#include "engine/ops/packed_matrix.h"
#include "tests/ops/op_test.h"

namespace headrace {

// A matrix as stored, in panels and in float32.
struct Weights {
  DType dtype;
  int64_t rows, cols;
  std::vector<std::byte> raw;     // [rows] of row_bytes
  std::vector<std::byte> panels;  // packed from raw
  std::vector<float> floats;      // [rows][cols] by the reference

  const std::byte* raw_row(int64_t row) const;
  // The first `count` rows as a matrix of their own, whose last panel is padded with zeros.
  std::vector<std::byte> pack_first(int64_t count) const;
  PackedMatrix view() const { return {dtype, rows, cols, panels.data()}; }
};

// Codes are random; scales (and plain elements) are finite: both signs, zero, -0 and subnormals
// too.
Weights random_weights(DType dtype, int64_t rows, int64_t cols, uint64_t seed);

}  // namespace headrace
