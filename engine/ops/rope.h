// Rotary position embedding.
// Source: transformers `modeling_rope_utils.py` (default, linear, llama3), half-split convention.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/config.h"

namespace headrace {

struct Cpu;

// The inverse frequencies of a model, head_dim/2 of them, scaling included.
std::vector<float> rope_frequencies(const Rope& rope, int head_dim);

// cos and sin of the angles of one step's rows, [rows][head_dim/2] each: angle = position *
// frequency in float32, its cosine and sine computed in double by own series (libm differs between
// machines) and rounded.
class RopeTable {
 public:
  void compute(const Cpu& cpu, std::span<const float> frequencies,
               std::span<const int64_t> positions);
  // Memory that it takes for so many rows.
  static uint64_t bytes(int64_t rows, int64_t half) {
    return static_cast<uint64_t>(2 * rows * half) * sizeof(float);
  }
  const float* cos(int64_t row) const { return cos_.data() + row * half_; }
  const float* sin(int64_t row) const { return sin_.data() + row * half_; }
  std::span<const float> all_cos() const { return cos_; }
  std::span<const float> all_sin() const { return sin_; }
  int half() const { return half_; }

 private:
  int half_ = 0;
  std::vector<float> cos_, sin_;
};

// Rotates every head of x [rows][heads * head_dim] in place; row i of x is row first_row + i of the
// table.
void apply_rope(const Cpu& cpu, const RopeTable& table, int64_t first_row, float* x, int64_t rows,
                int heads, int head_dim);

// The series, for tests. |x| < 2^30. The absolute error is below 2.3e-16 up to 2^20 and grows to
// 7e-8 at 2^30.
double canonical_sin(double x);
double canonical_cos(double x);

}  // namespace headrace
