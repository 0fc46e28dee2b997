// The innermost loops of the CPU path, one table per vector target. All tables compute the
// canonical arithmetic (ops/canonical.h): any two give the same bits. Kernels touch only their
// arguments and may run on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint/dtype.h"
#include "engine/ops/attention.h"
#include "engine/ops/canonical.h"
#include "engine/ops/int8.h"

namespace headrace {

enum class Target { kScalar, kAvx2, kAvx512 };

inline constexpr int kChunkK = 32;  // columns that one call of Kernels::expand yields

// What a kernel attends to. All queries see the same pages, each up to and including its own
// position. A KV head's part of a page is laid out as ops/kv_elements.h says.
struct AttentionTile : QueryTile {
  int head_dim = 0;
  int v_stride = 0;  // head_dim rounded up to 16
  KvFormat format = KvFormat::kF16;
  float scale = 0;
  const std::byte* const* k_pages = nullptr;  // [pages], this KV head's part
  const std::byte* const* v_pages = nullptr;
  float* scratch = nullptr;  // [2 * kMost * v_stride], at a cache line
};

// Linear layers in integers (ops/int8.h).
struct Int8Kernels {
  const char* name;  // "amx", "vnni", "avx2", "scalar"
  // Quantises `groups` groups of 32 floats, a row, into that slot of as many blocks.
  void (*quantise)(const float* x, int64_t groups, Int8Block* out, int slot);
  // acc[m][32] += groups [first, end) of rows m < rows of x times those of a panel.
  // `first` begins a block of the format, `end` ends one. None for a plain dtype.
  void (*multiply_panel[kDTypeCount])(const std::byte* panel, int64_t first, int64_t end,
                                      const Int8Rows& x, int rows, float* acc);
};

struct Kernels {
  Target target;
  const char* name;
  int few_rows;  // the most that multiply_panel takes

  // Expands chunk `chunk` (columns 32*chunk ..) of a panel block to float w[32][32], k by k; for a
  // plain dtype `block` is the first of `k` columns and the result is w[k][32].
  void (*expand[kDTypeCount])(const std::byte* block, int chunk, int k, float* w);
  // acc[m][32] += x[m][0..k) * w[k][32], m < rows, k ascending. x has row stride ldx. `next`, which
  // need not be memory, is fetched into the caches meanwhile.
  void (*multiply)(const float* x, int64_t ldx, int rows, const float* w, int k, float* acc,
                   std::span<const std::byte> next);
  // The same with all of a panel's columns, which are expanded on the way; 0 < rows <= few_rows.
  void (*multiply_panel[kDTypeCount])(const std::byte* panel, int64_t cols, const float* x,
                                      int64_t ldx, int rows, float* acc);

  // y = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
  // y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                     float* y);
  // Rotates the pairs (v[i], v[i + half]) by (cos[i], sin[i]).
  void (*rotate)(float* v, const float* cos, const float* sin, int half);
  void (*add)(float* x, const float* y, int64_t n);                // x += y
  void (*relu)(float* x, int64_t n);                               // x = max(x, 0)
  void (*silu_multiply)(float* gate, const float* up, int64_t n);  // gate = silu(gate) * up
  void (*attend)(const AttentionTile& tile);
  // Sum over i of exp(x[i] - shift), canonical lanes.
  float (*sum_exp)(const float* x, float shift, int64_t n);
  // The lowest index of the largest element. NaN counts as -infinity; n > 0.
  int64_t (*argmax)(const float* x, int64_t n);

  Int8Kernels int8;
};

// The table of a target. Throws ResourceMissing, naming what this CPU has, if it cannot run it.
const Kernels& kernels(Target target);
// "auto" (the best this CPU has), "avx512", "avx2" or "scalar"; throws ResourceMissing, or
// std::invalid_argument for another name.
const Kernels& kernels(std::string_view target);
// The targets this CPU can run, best first.
std::vector<Target> supported_targets();

// All tables for integers that this CPU can run beside a target's other kernels; kernels() has the
// first, the fastest.
std::vector<Int8Kernels> int8_tables(Target target);

const char* target_name(Target target);

namespace cpu_detail {  // filled in scalar.cpp and vector.cpp
const Kernels& scalar_kernels();
const Kernels& vector_kernels(Target target);
Int8Kernels scalar_int8_kernels();
std::vector<Int8Kernels> vector_int8_tables(Target target);
}  // namespace cpu_detail

}  // namespace headrace
