// Linear layers over packed weights, and single rows of them (embedding look-up).
#pragma once

#include <cstdint>
#include <vector>

#include "engine/ops/int8.h"
#include "engine/ops/packed_matrix.h"

namespace headrace {

struct Cpu;

// y[m][n] = sum_k x[m][k] * w[n][k] + bias[n], for m < rows.
//   x [rows][w.cols], y [rows][w.rows], row-major and dense; bias [w.rows] or nullptr.
// y must not overlap x. Threads split panels of outputs (and blocks of rows), never a sum.
void linear(const Cpu& cpu, const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
            float* y);

// The same for the outputs of panels [first, end) alone; only these columns of y are written.
void linear_panels(const Cpu& cpu, const float* x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* y);

// gate[m][n] = silu(gate[m][n]) * y[m][n], y as above and nowhere in memory, silu(v) = v / (1 +
// exp(-v)): the second half of a gated MLP.
void gate_panels(const Cpu& cpu, const float* x, int64_t rows, const PackedMatrix& w,
                 const float* bias, int64_t first, int64_t end, float* gate);

// The same in integers (ops/int8.h): x of w.cols columns as quantise_rows makes them, w of a format
// that has_codes().
void linear_panels(const Cpu& cpu, const Int8Rows& x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* y);
void gate_panels(const Cpu& cpu, const Int8Rows& x, int64_t rows, const PackedMatrix& w,
                 const float* bias, int64_t first, int64_t end, float* gate);
// blocks [int8_blocks(rows)][n / 32] of x [rows][n], n a multiple of 32; slots past the rows are
// left as they are.
void quantise_rows(const Cpu& cpu, const float* x, int64_t rows, int64_t n, Int8Block* blocks);

// out[w.cols] = row `row` of w in float32.
void unpack_row(const Cpu& cpu, const PackedMatrix& w, int64_t row, float* out);

struct RowTarget {
  int64_t row;
  float* out;
};
struct Unpacking {
  bool rounded = false;  // to f16
  bool added = false;    // to what is there
};
// The same for many rows, on all threads. A panel is expanded once for its rows.
void unpack_rows(const Cpu& cpu, const PackedMatrix& w, std::vector<RowTarget> rows,
                 const Unpacking& unpacking);

}  // namespace headrace
