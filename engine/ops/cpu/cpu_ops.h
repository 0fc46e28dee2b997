// Ops on host memory, by the CPU: all is done when a call returns.
#pragma once

#include "engine/ops/cpu/cpu.h"
#include "engine/ops/linear.h"
#include "engine/ops/ops.h"
#include "engine/ops/vector_ops.h"

namespace headrace {

class CpuOps final : public Ops {
 public:
  explicit CpuOps(const Cpu& cpu) : cpu_(cpu) {}

  float* enter(float* host, int64_t) override { return host; }
  void leave(float*, int64_t) override {}
  void set_rope(const RopeTable& host) override { rope_ = &host; }

  void rms_norm(const float* x, int64_t rows, int64_t n, const float* weight, float eps,
                float* y) override {
    headrace::rms_norm(cpu_, x, rows, n, weight, eps, y);
  }
  void layer_norm(const float* x, int64_t rows, int64_t n, const float* weight, const float* bias,
                  float eps, float* y) override {
    headrace::layer_norm(cpu_, x, rows, n, weight, bias, eps, y);
  }
  void add(float* x, const float* y, int64_t rows, int64_t n) override {
    headrace::add(cpu_, x, y, rows, n);
  }
  void relu(float* x, int64_t rows, int64_t n) override { headrace::relu(cpu_, x, rows, n); }
  void apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) override {
    headrace::apply_rope(cpu_, *rope_, first_row, x, rows, heads, head_dim);
  }
  void linear_panels(const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
                     int64_t first, int64_t end, float* y) override {
    headrace::linear_panels(cpu_, x, rows, w, bias, first, end, y);
  }
  void gate_panels(const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* gate) override {
    headrace::gate_panels(cpu_, x, rows, w, bias, first, end, gate);
  }
  void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences, int heads,
              float scale, const float* q, const float* k, const float* v, float* out) override {
    store_kv(cpu_, shape, sequences, k, v);
    attention(cpu_, shape, sequences, heads, scale, q, out);
  }
  float* fetch(float* from, int64_t) override { return from; }

 private:
  Cpu cpu_;
  const RopeTable* rope_ = nullptr;  // of the step
};

}  // namespace headrace
