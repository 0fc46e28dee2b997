// The scalar target: the canonical arithmetic written as plainly as it can be, over the panel and
// page layouts. Compiled with -mfma, so that std::fma is one instruction.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "engine/ops/cpu/kernels.h"
#include "engine/ops/packed_matrix.h"

namespace headrace::cpu_detail {
namespace {

template <DType kType>
void expand(const std::byte* block, int chunk, int k, float* w) {
  for (int i = 0; i < k; ++i) {
    for (int r = 0; r < kPanelRows; ++r) {
      w[i * kPanelRows + r] = panel_weight<kType>(block, r, chunk * kChunkK + i);
    }
  }
}

void multiply(const float* x, int64_t ldx, int rows, const float* w, int k, float* acc,
              std::span<const std::byte>) {
  for (int m = 0; m < rows; ++m) {
    for (int i = 0; i < k; ++i) {
      for (int r = 0; r < kPanelRows; ++r) {
        float& a = acc[m * kPanelRows + r];
        a = std::fma(x[m * ldx + i], w[i * kPanelRows + r], a);
      }
    }
  }
}

constexpr int kFewRows = 4;

template <DType kType>
void multiply_panel(const std::byte* panel, int64_t cols, const float* x, int64_t ldx, int rows,
                    float* acc) {
  for (int64_t k = 0; k < cols; ++k) {
    for (int r = 0; r < kPanelRows; ++r) {
      const float w = panel_weight<kType>(panel, r, k);
      for (int m = 0; m < rows; ++m) {
        float& a = acc[m * kPanelRows + r];
        a = std::fma(x[m * ldx + k], w, a);
      }
    }
  }
}

void quantise(const float* x, int64_t groups, Int8Block* out, int slot) {
  for (int64_t g = 0; g < groups; ++g) quantise_group(x + g * kInt8Columns, out[g], slot);
}

// One part of 16 or 32 columns from k on, which is the `part`th of a group.
template <DType kType, int kColumns>
void add_part(const std::byte* panel, int64_t k, const Int8Block& x, int slot, int part, int r,
              float& acc) {
  constexpr PanelLayout kLayout = panel_layout(kType);
  const std::byte* const block = panel + k / kLayout.block_k * kLayout.block_bytes;
  const int column = static_cast<int>(k % kLayout.block_k);
  const int8_t* const codes = x.codes[slot] + k % kInt8Columns;
  int sum = 0;
  for (int i = 0; i < kColumns; ++i) {
    sum += codes[i] * signed_code<kType>(panel_code<kType>(block, r, column + i));
  }
  const Affine a = panel_affine<kType>(block, r, column);
  acc = std::fma(static_cast<float>(sum), x.scale[slot] * a.scale, acc);
  if (kHasOffset<kType>) acc = std::fma(x.scaled_sum[part][slot], a.offset, acc);
}

template <DType kType>
void multiply_int8(const std::byte* panel, int64_t first, int64_t end, const Int8Rows& x, int rows,
                   float* acc) {
  for (int m = 0; m < rows; ++m) {
    const int slot = x.slot(m);
    for (int64_t g = first; g < end; ++g) {
      const Int8Block& group = x.block(m)[g];
      for (int r = 0; r < kPanelRows; ++r) {
        float& a = acc[m * kPanelRows + r];
        if constexpr (kScaleColumns<kType> == 16) {
          add_part<kType, 16>(panel, g * kInt8Columns, group, slot, 0, r, a);
          add_part<kType, 16>(panel, g * kInt8Columns + 16, group, slot, 1, r, a);
        } else {
          add_part<kType, kInt8Columns>(panel, g * kInt8Columns, group, slot, kWhole, r, a);
        }
      }
    }
  }
}

}  // namespace

Int8Kernels scalar_int8_kernels() {
  return {
      "scalar",
#include "engine/ops/cpu/int8_table.inc"
  };
}

namespace {

// The canonical sum of term(i, lane) folded over i < n.
template <typename Fold>
float lane_sum(int64_t n, Fold fold) {
  float lanes[kSumLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kSumLanes] = fold(lanes[i % kSumLanes], i);
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  const float sum = lane_sum(n, [&](float s, int64_t i) { return std::fma(x[i], x[i], s); });
  const float r = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * r * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                float* y) {
  const float count = static_cast<float>(n);
  const float mean = lane_sum(n, [&](float s, int64_t i) { return s + x[i]; }) / count;
  const float squares = lane_sum(n, [&](float s, int64_t i) {
    const float d = x[i] - mean;
    return std::fma(d, d, s);
  });
  const float r = 1.0f / std::sqrt(squares / count + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = std::fma((x[i] - mean) * r, weight[i], bias[i]);
}

void rotate(float* v, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = v[i], b = v[i + half];
    v[i] = std::fma(a, cos[i], -(b * sin[i]));
    v[i + half] = std::fma(b, cos[i], a * sin[i]);
  }
}

void add(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void relu(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

void silu_multiply(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + canonical_exp(-gate[i])) * up[i];
}

// The online softmax over pages; ops/attention.h states it.
void attend_one(const AttentionTile& tile, int query) {
  const float* q = tile.q[query];
  float* out = tile.out[query];
  const int64_t tokens = tile.position[query] + 1;
  const KvPageShape shape{1, tile.head_dim, tile.format};
  float max = 0.0f, sum = 0.0f;
  std::fill(out, out + tile.head_dim, 0.0f);
  for (int64_t page = 0; page * kPageTokens < tokens; ++page) {
    const auto valid =
        static_cast<int>(std::min<int64_t>(kPageTokens, tokens - page * kPageTokens));
    float score[kPageTokens];
    float page_max = -std::numeric_limits<float>::infinity();
    for (int t = 0; t < valid; ++t) {
      float dot = 0.0f;
      for (int d = 0; d < tile.head_dim; ++d) {
        dot = std::fma(q[d], k_element(shape, tile.k_pages[page], t, d), dot);
      }
      score[t] = dot * tile.scale;
      page_max = std::max(page_max, score[t]);
    }
    const float new_max = page == 0 ? page_max : std::max(max, page_max);
    const float keep = page == 0 ? 1.0f : canonical_exp(max - new_max);
    float p[kPageTokens] = {};
    for (int t = 0; t < valid; ++t) p[t] = canonical_exp(score[t] - new_max);
    sum = std::fma(sum, keep, lane_sum(kPageTokens, [&](float s, int64_t t) { return s + p[t]; }));
    max = new_max;
    for (int d = 0; d < tile.head_dim; ++d) {
      float o = out[d] * keep;
      for (int t = 0; t < valid; ++t) {
        o = std::fma(p[t], v_element(shape, tile.v_pages[page], t, d), o);
      }
      out[d] = o;
    }
  }
  for (int d = 0; d < tile.head_dim; ++d) out[d] /= sum;
}

void attend(const AttentionTile& tile) {
  for (int query = 0; query < tile.queries; ++query) attend_one(tile, query);
}

float sum_exp(const float* x, float shift, int64_t n) {
  return lane_sum(n, [&](float s, int64_t i) { return s + canonical_exp(x[i] - shift); });
}

int64_t argmax(const float* x, int64_t n) {
  int64_t best = 0;
  float value = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > value) {
      best = i;
      value = x[i];
    }
  }
  return best;
}

}  // namespace

const Kernels& scalar_kernels() {
  const Int8Kernels int8 = scalar_int8_kernels();
  static const Kernels table = {
      Target::kScalar,
      "scalar",
      kFewRows,
#include "engine/ops/cpu/kernel_table.inc"
  };
  return table;
}

}  // namespace headrace::cpu_detail
