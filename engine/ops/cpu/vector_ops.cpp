#include "engine/ops/vector_ops.h"

#include "engine/ops/cpu/cpu.h"

namespace headrace {
namespace {

// Few rows are not worth waking the other threads for.
template <typename F>
void for_rows(const Cpu& cpu, int64_t rows, int64_t n, F f) {
  constexpr int64_t kWorthThreads = 16384;  // elements
  if (rows * n < kWorthThreads) {
    for (int64_t i = 0; i < rows; ++i) f(i);
  } else {
    cpu.threads.parallel_for(rows, f);
  }
}

}  // namespace

void rms_norm(const Cpu& cpu, const float* x, int64_t rows, int64_t n, const float* weight,
              float eps, float* y) {
  for_rows(cpu, rows, n,
           [&](int64_t i) { cpu.kernels.rms_norm(x + i * n, weight, eps, n, y + i * n); });
}

void layer_norm(const Cpu& cpu, const float* x, int64_t rows, int64_t n, const float* weight,
                const float* bias, float eps, float* y) {
  for_rows(cpu, rows, n,
           [&](int64_t i) { cpu.kernels.layer_norm(x + i * n, weight, bias, eps, n, y + i * n); });
}

void add(const Cpu& cpu, float* x, const float* y, int64_t rows, int64_t n) {
  for_rows(cpu, rows, n, [&](int64_t i) { cpu.kernels.add(x + i * n, y + i * n, n); });
}

void relu(const Cpu& cpu, float* x, int64_t rows, int64_t n) {
  for_rows(cpu, rows, n, [&](int64_t i) { cpu.kernels.relu(x + i * n, n); });
}

}  // namespace headrace
