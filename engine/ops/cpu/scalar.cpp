// The scalar target: the canonical arithmetic written as plainly as it can be, over the panel and
// page layouts. Compiled with -mfma, so that std::fma is one instruction.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/group_quant.h"
#include "engine/half.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/packed_matrix.h"

namespace headrace::cpu_detail {
namespace {

float load_f16(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return f16_to_f32(bits);
}

uint8_t u8(std::byte value) { return static_cast<uint8_t>(value); }
int8_t i8(std::byte value) { return static_cast<int8_t>(value); }

template <DType kType>
void expand_plain(const std::byte* block, int, int k, float* w) {
  for (int i = 0; i < k * kPanelRows; ++i) {
    if constexpr (kType == DType::kF32) {
      std::memcpy(w + i, block + i * 4, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, block + i * 2, 2);
      w[i] = kType == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  }
}

int code(const PanelLayout& layout, const std::byte* codes, int r, int k) {
  const int j = r % 16, upper = r / 16;
  if (layout.low_bits == 8) return u8(codes[k * kPanelRows + r]);
  const std::byte* high = codes + layout.block_k * kPanelRows * layout.low_bits / 8;
  const auto plane2 = [&](const std::byte* plane) {
    return (u8(plane[k / 2 * 16 + j]) >> (k % 2 * 4 + upper * 2)) & 3;
  };
  const int low =
      layout.low_bits == 4 ? (u8(codes[k * 16 + j]) >> (upper * 4)) & 15 : plane2(codes);
  if (layout.high_bits == 2) return low | plane2(high) << layout.low_bits;
  if (layout.high_bits == 1) {
    return low | ((u8(high[k / 4 * 16 + j]) >> (k % 4 * 2 + upper)) & 1) << layout.low_bits;
  }
  return low;
}

// w = scale * (code - zero) [+ offset]
struct Affine {
  float scale, offset;
};

// Row r's scale and offset for column k of a block.
template <DType kType>
Affine affine(const std::byte* block, int r, int k) {
  const float d = load_f16(block + r * 2);
  const std::byte* after_d = block + kPanelRows * 2;
  const std::byte* after_dmin = block + kPanelRows * 4;
  const auto at = [&](const std::byte* first, int group) { return first[group * kPanelRows + r]; };
  if constexpr (kType == DType::kQ4_1 || kType == DType::kQ5_1 || kType == DType::kG8 ||
                kType == DType::kG4) {
    return {d, load_f16(after_d + r * 2)};
  } else if constexpr (kType == DType::kQ2_K) {
    const uint8_t both = u8(at(after_dmin, k / 16));
    return {d * static_cast<float>(both & 15),
            -(load_f16(after_d + r * 2) * static_cast<float>(both >> 4))};
  } else if constexpr (kType == DType::kQ4_K || kType == DType::kQ5_K) {
    return {d * static_cast<float>(u8(at(after_dmin, k / 32))),
            -(load_f16(after_d + r * 2) * static_cast<float>(u8(at(after_dmin, 8 + k / 32))))};
  } else if constexpr (kType == DType::kQ3_K || kType == DType::kQ6_K) {
    return {d * static_cast<float>(i8(at(after_d, k / 16))), 0.0f};
  } else {
    return {d, 0.0f};
  }
}

template <DType kType>
constexpr bool kHasOffset =
    kType == DType::kQ4_1 || kType == DType::kQ5_1 || kType == DType::kQ2_K ||
    kType == DType::kQ4_K || kType == DType::kQ5_K || kType == DType::kG8 || kType == DType::kG4;

template <DType kType>
int signed_code(int c) {
  switch (kType) {
    case DType::kQ8_0:
      return static_cast<int8_t>(c);
    case DType::kQ4_0:
      return c - 8;
    case DType::kQ5_0:
      return c - 16;
    case DType::kQ3_K:
      return c - 4;
    case DType::kQ6_K:
      return c - 32;
    default:
      return c;
  }
}

template <DType kType>
void expand_coded(const std::byte* block, int chunk, int, float* w) {
  const PanelLayout layout = panel_layout(kType);
  for (int i = 0; i < kChunkK; ++i) {
    const int k = chunk * kChunkK + i;
    for (int r = 0; r < kPanelRows; ++r) {
      const Affine a = affine<kType>(block, r, k);
      const int q = signed_code<kType>(code(layout, block + layout.codes_offset, r, k));
      const float product = a.scale * static_cast<float>(q);
      w[i * kPanelRows + r] = kHasOffset<kType> ? product + a.offset : product;
    }
  }
}

void multiply(const float* x, int64_t ldx, int rows, const float* w, int k, float* acc) {
  for (int m = 0; m < rows; ++m) {
    for (int i = 0; i < k; ++i) {
      for (int r = 0; r < kPanelRows; ++r) {
        float& a = acc[m * kPanelRows + r];
        a = std::fma(x[m * ldx + i], w[i * kPanelRows + r], a);
      }
    }
  }
}

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

float plain_element(KvFormat format, const std::byte* part, int index) {
  if (format == KvFormat::kF16) return load_f16(part + index * 2);
  float value;
  std::memcpy(&value, part + index * 4, 4);
  return value;
}

// Element d of a token. `code` is where its code, or the byte that two elements share, lies among
// the codes.
float quantised_element(const AttentionTile& tile, const std::byte* part, int token, int d,
                        int code) {
  const int groups = (tile.head_dim + kQuantGroup - 1) / kQuantGroup;
  const int slot = d / kQuantGroup * kPageTokens + token;
  const float scale = load_f16(part + slot * 2);
  const float minimum = load_f16(part + (groups * kPageTokens + slot) * 2);
  const uint8_t byte = u8(part[groups * kPageTokens * 4 + code]);
  const int q = tile.format == KvFormat::kQ8 ? byte : (byte >> (d % 2 * 4)) & 15;
  const float product = scale * static_cast<float>(q);
  return product + minimum;
}

float k_element(const AttentionTile& tile, const std::byte* part, int token, int d) {
  if (kv_code_bits(tile.format) == 0) {
    return plain_element(tile.format, part, d * kPageTokens + token);
  }
  const int row = tile.format == KvFormat::kQ8 ? d : d / 2;
  return quantised_element(tile, part, token, d, row * kPageTokens + token);
}

float v_element(const AttentionTile& tile, const std::byte* part, int token, int d) {
  const int index = token * tile.v_stride + d;
  if (kv_code_bits(tile.format) == 0) return plain_element(tile.format, part, index);
  return quantised_element(tile, part, token, d, tile.format == KvFormat::kQ8 ? index : index / 2);
}

// The online softmax over pages; ops/attention.h states it.
void attend_one(const AttentionTile& tile, int query) {
  const float* q = tile.q[query];
  float* out = tile.out[query];
  const int64_t tokens = tile.position[query] + 1;
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
        dot = std::fma(q[d], k_element(tile, tile.k_pages[page], t, d), dot);
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
        o = std::fma(p[t], v_element(tile, tile.v_pages[page], t, d), o);
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
  static const Kernels table = {
      Target::kScalar,
      "scalar",
#include "engine/ops/cpu/kernel_table.inc"
  };
  return table;
}

}  // namespace headrace::cpu_detail
