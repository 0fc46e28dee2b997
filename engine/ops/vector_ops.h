// Ops on rows of hidden states: norms, residual additions and activations of the MLP.
// All matrices are row-major and dense, [rows][n] float32.
#pragma once

#include <cstdint>

namespace headrace {

struct Cpu;

// y = x / sqrt(mean(x^2) + eps) * weight. y may be x.
void rms_norm(const Cpu& cpu, const float* x, int64_t rows, int64_t n, const float* weight,
              float eps, float* y);

// y = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias. y may be x.
void layer_norm(const Cpu& cpu, const float* x, int64_t rows, int64_t n, const float* weight,
                const float* bias, float eps, float* y);

// x += y
void add(const Cpu& cpu, float* x, const float* y, int64_t rows, int64_t n);

// x = max(x, 0)
void relu(const Cpu& cpu, float* x, int64_t rows, int64_t n);

}  // namespace headrace
