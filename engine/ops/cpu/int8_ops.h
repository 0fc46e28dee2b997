// Ops on host memory with linear layers in integers (ops/int8.h) where weights have codes. Operands
// are floats all the same: they are quantised when the first such layer reads them, once for all
// of its panels and for all layers that read the same.
#pragma once

#include <span>

#include "engine/ops/cpu/cpu_ops.h"
#include "engine/ops/int8.h"

namespace headrace {

class Int8Ops final : public CpuOps {
 public:
  // `room`: for quantised rows, at least one block of the widest operand. Rows that it has no room
  // for are quantised anew for each call that reads them.
  Int8Ops(const Cpu& cpu, std::span<Int8Block> room) : CpuOps(cpu), room_(room) {}

  const Operand* enter_operand(float* host, int64_t rows, int64_t n) override;
  void normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) override;
  using CpuOps::normalise;
  const Operand* operand(const float* x, int64_t rows, int64_t n, float* room) override;
  const Operand* activated(float* inner, int64_t rows, int64_t n) override;
  void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences, int heads,
              float scale, const float* q, const float* k, const float* v, Operand* out) override;

  void linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                     int64_t first, int64_t end, float* y) override;
  void gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* inner) override;

 private:
  // Rows [rows][n] are the operand now, and not quantised.
  void begin_operand(const Operand* x, int64_t rows, int64_t n);
  // Rows of the operand from x on, as many as are quantised together.
  struct Part {
    Int8Rows x;
    int64_t rows;
  };
  Part quantised_from(const float* x, int64_t n);
  template <typename Product>
  void in_parts(const Operand* x, int64_t rows, const PackedMatrix& w, Product product);

  std::span<Int8Block> room_;
  struct Rows {
    const float* x = nullptr;
    int64_t rows = 0, n = 0;
  };
  Rows operand_;
  Rows quantised_;  // of them, what is in the room
};

}  // namespace headrace
