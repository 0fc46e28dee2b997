// The canonical arithmetic (engine/ops/canonical.h, attention.h, rope.h, vector_ops.h) once more,
// as plainly as it can be written: dense row-major arrays, no panels, no pages, no threads, no
// vectors. The kernels of every target must give the same bits.
//
// All functions are pure and may run on any thread. Outputs must not overlap inputs, except where a
// function works in place.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/ops/cpu/kernels.h"

namespace headrace::reference {

// y[m][n] = sum_k x[m][k] * w[n][k], + bias[n] if bias is not null.
// x [rows][cols], w [outputs][cols], y [rows][outputs].
void linear(const float* x, int64_t rows, int64_t cols, const float* w, int64_t outputs,
            const float* bias, float* y);

// The polynomial. NaN gives NaN.
float exp(float x);

// The sum in canonical lanes and tree.
float sum(std::span<const float> x);
// The same of exp(x[i] - shift).
float sum_exp(std::span<const float> x, float shift);
// The lowest index of the largest element; NaN counts as -infinity.
int64_t argmax(std::span<const float> x);

// One row each.
std::vector<float> rms_norm(std::span<const float> x, std::span<const float> weight, float eps);
std::vector<float> layer_norm(std::span<const float> x, std::span<const float> weight,
                              std::span<const float> bias, float eps);

float relu(float x);
float silu(float x);

// Rotates one head in place: v has twice as many elements as cos and sin.
void rotate(std::span<float> v, std::span<const float> cos, std::span<const float> sin);

// What K or V of one token and KV head become in the cache, in place.
void store(KvFormat format, std::span<float> head);

// One query head at `position` over the keys and values of tokens 0 .. position: k and v point to
// the KV head's elements of token 0, already as stored; tokens are `stride` floats apart.
std::vector<float> attention(std::span<const float> q, const float* k, const float* v,
                             int64_t stride, int64_t position, float scale);

}  // namespace headrace::reference
