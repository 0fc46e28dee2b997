// Causal attention over a paged KV cache.
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
// What is stored of a token depends on its own K and V only. K and V are always read back from
// their pages, also those of the step being computed, so the result does not depend on how a prompt
// was cut in chunks.
//
// Canonical order, per query (row, head): pages ascending; with s[t] = dot(q, k[t]) * scale over
// the tokens t of the page up to the query's own position:
//   m' = max(m, max s); c = exp(m - m') (1 on the first page); p[t] = exp(s[t] - m')
//   l = l*c + (p summed over 16 lanes, absent tokens 0); o[d] = o[d]*c, then += p[t]*v[t][d], t
//   ascending
// and out = o / l. dot, l and o use fused multiply-adds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/group_quant.h"
#include "engine/ops/cpu/kernels.h"

namespace headrace {

struct Cpu;

// "f16", "f32", "q8", "q4".
const char* kv_format_name(KvFormat format);
// Throws std::invalid_argument that lists the names.
KvFormat kv_format_of(std::string_view name);

struct KvPageShape {
  int kv_heads = 0;
  int head_dim = 0;
  KvFormat format = KvFormat::kF16;

  int v_stride() const { return (head_dim + 15) / 16 * 16; }
  int groups() const { return (head_dim + kQuantGroup - 1) / kQuantGroup; }
  // Scales and minima before the codes of one head's K or V; 0 for f16 and f32.
  size_t scale_bytes() const { return is_quantised() ? size_t{4} * groups() * kPageTokens : 0; }
  size_t k_bytes() const { return scale_bytes() + code_bytes(head_dim); }  // one head
  size_t v_bytes() const { return scale_bytes() + code_bytes(v_stride()); }
  // The same for every page: kv_heads * (k_bytes + v_bytes), a multiple of 16.
  size_t page_bytes() const { return kv_heads * (k_bytes() + v_bytes()); }
  bool is_quantised() const { return kv_code_bits(format) != 0; }
  size_t k_offset(int head) const { return head * k_bytes(); }
  size_t v_offset(int head) const { return kv_heads * k_bytes() + head * v_bytes(); }

 private:
  // Codes or plain elements of 16 tokens.
  size_t code_bytes(int elements) const {
    const size_t bytes = format == KvFormat::kQ8   ? elements
                         : format == KvFormat::kQ4 ? (elements + 1) / 2
                                                   : kv_element_bytes(format) * elements;
    return bytes * kPageTokens;
  }
};

// The rows of one sequence in a ragged batch: consecutive rows at consecutive positions.
struct AttentionSequence {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_position = 0;
  std::byte* const* pages = nullptr;  // this layer's pages, enough for the last position
};

// Writes K and V of the rows, [rows][kv_heads * head_dim] each, into their pages.
void store_kv(const Cpu& cpu, const KvPageShape& shape,
              std::span<const AttentionSequence> sequences, const float* k, const float* v);

// out[row][heads * head_dim] from q of the same shape. heads is a multiple of kv_heads. The K and V
// of all rows must be stored before.
void attention(const Cpu& cpu, const KvPageShape& shape,
               std::span<const AttentionSequence> sequences, int heads, float scale, const float* q,
               float* out);

}  // namespace headrace
