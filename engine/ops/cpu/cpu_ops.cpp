#include "engine/ops/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "engine/ops/linear.h"
#include "engine/ops/vector_ops.h"

namespace headrace {
namespace {

[[noreturn]] void refuse_tables() {
  throw std::logic_error("CpuOps: the host looks up embeddings itself");
}

}  // namespace

void CpuOps::work_in(const HiddenPlace& place) {
  if (place.memory) throw std::logic_error("CpuOps: hidden states are on the host");
}

float* CpuOps::enter(const EmbeddingTables&, const EmbeddingRows&) { refuse_tables(); }
void CpuOps::embed(const EmbeddingTables&, const EmbeddingRows&, float*) { refuse_tables(); }

void CpuOps::leave_rows(float* host, int64_t width, std::span<const int64_t> rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    float* const to = host + static_cast<int64_t>(i) * width;
    if (const float* const from = host + rows[i] * width; from != to) {
      std::copy_n(from, width, to);
    }
  }
}

void CpuOps::normalise(const RowNorm& norm, const float* x, int64_t rows, float* y) {
  if (norm.bias) {
    layer_norm(cpu_, x, rows, norm.n, norm.weight, norm.bias, norm.eps, y);
  } else {
    rms_norm(cpu_, x, rows, norm.n, norm.weight, norm.eps, y);
  }
}

void CpuOps::linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                           int64_t first, int64_t end, float* y) {
  headrace::linear_panels(cpu_, floats(x), rows, w, bias, first, end, y);
}

void CpuOps::add_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                        int64_t first, int64_t end, float* room, float* y) {
  linear_panels(x, rows, w, bias, first, end, room);
  if (end == w.panel_count()) add(cpu_, y, room, rows, w.rows);
}

void CpuOps::relu_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                         int64_t first, int64_t end, float* inner) {
  linear_panels(x, rows, w, bias, first, end, inner);
  if (end == w.panel_count()) relu(cpu_, inner, rows, w.rows);
}

void CpuOps::gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                         int64_t first, int64_t end, float* inner) {
  headrace::gate_panels(cpu_, floats(x), rows, w, bias, first, end, inner);
}

void CpuOps::attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences,
                    int heads, float scale, const float* q, const float* k, const float* v,
                    Operand* out) {
  store_kv(cpu_, shape, sequences, k, v);
  attention(cpu_, shape, sequences, heads, scale, q, floats(out));
}

void CpuOps::find_best(const float* logits, int64_t first_row, int64_t rows, int64_t width,
                       int64_t id) {
  cpu_.threads.parallel_for(rows, [&](int64_t row) {
    const float* const of_row = logits + row * width;
    BestToken& best = best_[static_cast<size_t>(first_row + row)];
    const int64_t place = cpu_.kernels.argmax(of_row, width);
    if (of_row[place] > best.logit) {
      best.logit = of_row[place];
      best.token = static_cast<int32_t>(id + place);
    }
    bool has_nan = false;
    for (int64_t i = 0; i < width; ++i) has_nan |= std::isnan(of_row[i]);
    best.has_nan |= has_nan;
  });
}

void CpuOps::take_best(std::span<BestToken> host) {
  std::copy_n(best_.begin(), host.size(), host.begin());
}

}  // namespace headrace
