// The plain definition of linear layers in integers (engine/ops/int8.h), over weights as stored:
// one output at a time, no panels, no vectors. The kernels of every target must give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/checkpoint/dtype.h"

namespace headrace::reference {

struct Int8Row {
  std::vector<int> codes;
  std::vector<float> scales;  // one for 32 codes
};

// A multiple of 32 floats.
Int8Row quantise_int8(std::span<const float> row);

// Weights [outputs][cols] of a format with codes, rows one after the other.
struct StoredWeights {
  DType dtype;
  int64_t outputs, cols;
  const std::byte* rows;
};

// y[m][n] for x [rows][cols], + bias[n] if bias is not null.
void int8_linear(const float* x, int64_t rows, const StoredWeights& w, const float* bias, float* y);

}  // namespace headrace::reference
