#include "engine/ops/cpu/int8_ops.h"

#include <algorithm>
#include <stdexcept>

#include "engine/ops/linear.h"

namespace headrace {

void Int8Ops::begin_operand(const Operand* x, int64_t rows, int64_t n) {
  operand_ = {floats(x), rows, n};
  quantised_ = {};
}

const Operand* Int8Ops::enter_operand(float* host, int64_t rows, int64_t n) {
  const Operand* const x = CpuOps::enter_operand(host, rows, n);
  begin_operand(x, rows, n);
  return x;
}

void Int8Ops::normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) {
  CpuOps::normalise(norm, x, rows, y);
  begin_operand(y, rows, norm.n);
}

const Operand* Int8Ops::operand(const float* x, int64_t rows, int64_t n, float* room) {
  const Operand* const y = CpuOps::operand(x, rows, n, room);
  begin_operand(y, rows, n);
  return y;
}

const Operand* Int8Ops::activated(float* inner, int64_t rows, int64_t n) {
  const Operand* const y = CpuOps::activated(inner, rows, n);
  begin_operand(y, rows, n);
  return y;
}

void Int8Ops::attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences,
                     int heads, float scale, const float* q, const float* k, const float* v,
                     Operand* out) {
  CpuOps::attend(shape, sequences, heads, scale, q, k, v, out);
  if (sequences.empty()) return;
  // Visits come in order: the rows before these have been attended to.
  const AttentionSequence& last = sequences.back();
  begin_operand(out, last.first_row + last.rows, int64_t{heads} * shape.head_dim);
}

Int8Ops::Part Int8Ops::quantised_from(const float* x, int64_t n) {
  const auto row_in = [&](const Rows& rows) {
    return rows.n == n && x >= rows.x && x < rows.x + rows.rows * n ? (x - rows.x) / n : -1;
  };
  const int64_t row = row_in(operand_);
  if (row < 0) throw std::logic_error("Int8Ops: rows of a linear layer that are no operand");
  const int64_t of_row = n / kInt8Columns;
  if (row_in(quantised_) < 0) {
    const int64_t most = std::ssize(room_) / of_row * kInt8Rows;
    const int64_t first = operand_.rows <= most ? 0 : row;
    quantised_ = {operand_.x + first * n, std::min(most, operand_.rows - first), n};
    quantise_rows(cpu_, quantised_.x, quantised_.rows, n, room_.data());
  }
  const int64_t begin = row_in(quantised_);
  return {{room_.data(), of_row, begin}, quantised_.rows - begin};
}

// product(first, rows, x) for rows [first, first + rows), which are x, at once.
template <typename Product>
void Int8Ops::in_parts(const Operand* x, int64_t rows, const PackedMatrix& w, Product product) {
  for (int64_t done = 0; done < rows;) {
    const Part part = quantised_from(floats(x) + done * w.cols, w.cols);
    const int64_t here = std::min(rows - done, part.rows);
    product(done, here, part.x);
    done += here;
  }
}

void Int8Ops::linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w,
                            const float* bias, int64_t first, int64_t end, float* y) {
  if (!has_codes(w.dtype)) return CpuOps::linear_panels(x, rows, w, bias, first, end, y);
  in_parts(x, rows, w, [&](int64_t row, int64_t count, const Int8Rows& of) {
    headrace::linear_panels(cpu_, of, count, w, bias, first, end, y + row * w.rows);
  });
}

void Int8Ops::gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                          int64_t first, int64_t end, float* inner) {
  if (!has_codes(w.dtype)) return CpuOps::gate_panels(x, rows, w, bias, first, end, inner);
  in_parts(x, rows, w, [&](int64_t row, int64_t count, const Int8Rows& of) {
    headrace::gate_panels(cpu_, of, count, w, bias, first, end, inner + row * w.rows);
  });
}

}  // namespace headrace
