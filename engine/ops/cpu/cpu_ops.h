// Ops on host memory, by the CPU: all is done when a call returns. Operands are floats.
#pragma once

#include <vector>

#include "engine/ops/cpu/cpu.h"
#include "engine/ops/ops.h"

namespace headrace {

class CpuOps : public Ops {
 public:
  static constexpr int64_t kBlockFloats = 128 << 10;  // 512 KiB stay in a cache

  explicit CpuOps(const Cpu& cpu) : cpu_(cpu) {}

  void work_in(const HiddenPlace& place) override;
  float* enter(float* host, int64_t) override { return host; }
  float* enter(const EmbeddingTables& tables, const EmbeddingRows& rows) override;
  void embed(const EmbeddingTables& tables, const EmbeddingRows& rows, float* x) override;
  const Operand* enter_operand(float* host, int64_t, int64_t) override {
    return reinterpret_cast<const Operand*>(host);
  }
  int64_t operand_bytes() const override { return sizeof(float); }
  void leave(float*, int64_t) override {}
  void leave_rows(float* host, int64_t width, std::span<const int64_t> rows) override;
  void set_rope(const RopeTable& host) override { rope_ = &host; }

  void normalise(const RowNorm& norm, const float* x, int64_t rows, float* y) override;
  void normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) override {
    normalise(norm, x, rows, floats(y));
  }
  const Operand* operand(const float* x, int64_t, int64_t, float*) override {
    return reinterpret_cast<const Operand*>(x);
  }
  void apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) override {
    headrace::apply_rope(cpu_, *rope_, first_row, x, rows, heads, head_dim);
  }
  void linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                     int64_t first, int64_t end, float* y) override;
  void add_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                  int64_t first, int64_t end, float* room, float* y) override;
  void relu_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* inner) override;
  void gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* inner) override;
  const Operand* activated(float* inner, int64_t, int64_t) override {
    return reinterpret_cast<const Operand*>(inner);
  }
  void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences, int heads,
              float scale, const float* q, const float* k, const float* v, Operand* out) override;

  int64_t block_floats() const override { return kBlockFloats; }
  void begin_best(int64_t rows) override { best_.assign(static_cast<size_t>(rows), BestToken{}); }
  void find_best(const float* logits, int64_t first_row, int64_t rows, int64_t width,
                 int64_t id) override;
  void take_best(std::span<BestToken> host) override;
  float* fetch(float* from, int64_t) override { return from; }

 protected:
  static const float* floats(const Operand* x) { return reinterpret_cast<const float*>(x); }
  static float* floats(Operand* x) { return reinterpret_cast<float*>(x); }

  Cpu cpu_;

 private:
  const RopeTable* rope_ = nullptr;  // of the step
  std::vector<BestToken> best_;
};

}  // namespace headrace
