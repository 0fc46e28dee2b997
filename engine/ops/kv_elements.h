// Pages of the KV cache, element by element: plain code that the CPU and the GPU share.
//
// A KV page holds kPageTokens tokens of one layer and one sequence, for all KV heads: first K of
// every head, then V of every head; v_stride = head_dim rounded up to 16.
//   f16 f32  K as [head_dim][16], V as [16][v_stride]; f16 saturates at +-65504
//   q8 q4    K and V each: scale [groups][16] f16, minimum [groups][16] f16, then codes; a group is
//            64 elements of one token along head_dim, the last one what is left
//            (engine/group_quant.h; elements are saturated at +-65504 before)
//            q8: K as [head_dim][16], V as [16][v_stride], a byte each
//            q4: a byte holds elements d (low four bits) and d + 1, d even: K as
//            [head_dim / 2 rounded up][16], V as [16][v_stride / 2]
// V is zero past head_dim. What is stored of a token depends on its own K and V only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/both.h"
#include "engine/group_quant.h"
#include "engine/half.h"
#include "engine/ops/canonical.h"

namespace headrace {

enum class KvFormat { kF16, kF32, kQ8, kQ4 };
// Bits of a code where elements are quantised, else 0.
HEADRACE_BOTH constexpr int kv_code_bits(KvFormat format) {
  return format == KvFormat::kQ8 ? 8 : format == KvFormat::kQ4 ? 4 : 0;
}
// Of the formats that are not quantised.
HEADRACE_BOTH constexpr size_t kv_element_bytes(KvFormat format) {
  return format == KvFormat::kF16 ? 2 : 4;
}

struct KvPageShape {
  int kv_heads = 0;
  int head_dim = 0;
  KvFormat format = KvFormat::kF16;
  // Bytes from what a page table points to, to the page: one table may serve all layers.
  size_t page_offset = 0;

  HEADRACE_BOTH int v_stride() const { return (head_dim + 15) / 16 * 16; }
  HEADRACE_BOTH int groups() const { return (head_dim + kQuantGroup - 1) / kQuantGroup; }
  // Scales and minima before the codes of one head's K or V; 0 for f16 and f32.
  HEADRACE_BOTH size_t scale_bytes() const {
    return is_quantised() ? size_t{4} * groups() * kPageTokens : 0;
  }
  HEADRACE_BOTH size_t k_bytes() const { return scale_bytes() + code_bytes(head_dim); }  // one head
  HEADRACE_BOTH size_t v_bytes() const { return scale_bytes() + code_bytes(v_stride()); }
  // The same for every page: kv_heads * (k_bytes + v_bytes), a multiple of 16.
  HEADRACE_BOTH size_t page_bytes() const { return kv_heads * (k_bytes() + v_bytes()); }
  HEADRACE_BOTH bool is_quantised() const { return kv_code_bits(format) != 0; }
  HEADRACE_BOTH size_t k_offset(int head) const { return page_offset + head * k_bytes(); }
  HEADRACE_BOTH size_t v_offset(int head) const {
    return page_offset + kv_heads * k_bytes() + head * v_bytes();
  }

 private:
  // Codes or plain elements of 16 tokens.
  HEADRACE_BOTH size_t code_bytes(int elements) const {
    const size_t bytes = format == KvFormat::kQ8   ? elements
                         : format == KvFormat::kQ4 ? (elements + 1) / 2
                                                   : kv_element_bytes(format) * elements;
    return bytes * kPageTokens;
  }
};

// Where element d of a token is among those of one head's K or V.
HEADRACE_BOTH inline int k_index(int token, int d) { return d * kPageTokens + token; }
HEADRACE_BOTH inline int v_index(const KvPageShape& shape, int token, int d) {
  return token * shape.v_stride() + d;
}
// Where the byte is that q4 keeps it in.
HEADRACE_BOTH inline int k_pair_index(int token, int d) { return k_index(token, d / 2); }
HEADRACE_BOTH inline int v_pair_index(const KvPageShape& shape, int token, int d) {
  return v_index(shape, token, d) / 2;
}

// Element `index` of a part that is not quantised.
HEADRACE_BOTH inline float plain_kv_element(KvFormat format, const std::byte* part, int index) {
  if (format == KvFormat::kF16) return f16_at(part + index * 2);
  float value;
  std::memcpy(&value, part + index * 4, 4);
  return value;
}

// Element d of a token whose code, or the byte that two elements share, is `byte`.
HEADRACE_BOTH inline float quantised_kv_element(const KvPageShape& shape, const std::byte* part,
                                                int token, int d, int byte) {
  const std::byte* const scale = part + (d / kQuantGroup * kPageTokens + token) * 2;
  const int code = shape.format == KvFormat::kQ8 ? byte : (byte >> (d % 2 * 4)) & 15;
  const float product = f16_at(scale) * static_cast<float>(code);
  return product + f16_at(scale + shape.scale_bytes() / 2);
}

// Element d of a token's K in `part`, one head's K of a page.
HEADRACE_BOTH inline float k_element(const KvPageShape& shape, const std::byte* part, int token,
                                     int d) {
  if (!shape.is_quantised()) return plain_kv_element(shape.format, part, k_index(token, d));
  const int index = shape.format == KvFormat::kQ8 ? k_index(token, d) : k_pair_index(token, d);
  const auto byte = static_cast<uint8_t>(part[shape.scale_bytes() + static_cast<size_t>(index)]);
  return quantised_kv_element(shape, part, token, d, byte);
}

HEADRACE_BOTH inline float v_element(const KvPageShape& shape, const std::byte* part, int token,
                                     int d) {
  if (!shape.is_quantised()) return plain_kv_element(shape.format, part, v_index(shape, token, d));
  const int index =
      shape.format == KvFormat::kQ8 ? v_index(shape, token, d) : v_pair_index(shape, token, d);
  const auto byte = static_cast<uint8_t>(part[shape.scale_bytes() + static_cast<size_t>(index)]);
  return quantised_kv_element(shape, part, token, d, byte);
}

HEADRACE_BOTH inline void put_plain_kv(KvFormat format, std::byte* part, int index, float value) {
  if (format == KvFormat::kF32) {
    std::memcpy(part + index * 4, &value, 4);
  } else {
    const uint16_t bits = f32_to_f16(saturated_to_f16(value));
    std::memcpy(part + index * 2, &bits, 2);
  }
}

// Stores group `group` (64 elements) of `row`, a token's K or V of one head [head_dim], as token
// `token` of `part`, one head's K or V of a page. Together the groups write all of the token.
HEADRACE_BOTH inline void store_kv_group(const KvPageShape& shape, bool is_k, const float* row,
                                         int group, int token, std::byte* part) {
  const int first = group * kQuantGroup;
  const int last = first + kQuantGroup;
  const int width = is_k ? shape.head_dim : shape.v_stride();
  const int end = last < width ? last : width;
  if (!shape.is_quantised()) {
    for (int d = first; d < end; ++d) {
      put_plain_kv(shape.format, part, is_k ? k_index(token, d) : v_index(shape, token, d),
                   d < shape.head_dim ? row[d] : 0.0f);
    }
    return;
  }
  float values[kQuantGroup] = {};
  uint8_t codes[kQuantGroup] = {};
  const int count = (last < shape.head_dim ? last : shape.head_dim) - first;
  for (int i = 0; i < count; ++i) values[i] = saturated_to_f16(row[first + i]);
  const GroupScale scale =
      quantize_group(values, count, (1 << kv_code_bits(shape.format)) - 1, codes);
  std::byte* const at = part + (group * kPageTokens + token) * 2;
  std::memcpy(at, &scale.scale, 2);
  std::memcpy(at + shape.scale_bytes() / 2, &scale.minimum, 2);
  std::byte* const bytes = part + shape.scale_bytes();
  if (shape.format == KvFormat::kQ8) {
    for (int d = first; d < end; ++d) {
      bytes[is_k ? k_index(token, d) : v_index(shape, token, d)] =
          static_cast<std::byte>(codes[d - first]);
    }
  } else {
    for (int d = first; d < end; d += 2) {
      bytes[is_k ? k_pair_index(token, d) : v_pair_index(shape, token, d)] =
          static_cast<std::byte>(codes[d - first] | codes[d - first + 1] << 4);
    }
  }
}

}  // namespace headrace
