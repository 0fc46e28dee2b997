// Causal attention over a paged KV cache.
//
// A KV page holds kPageTokens tokens of one layer and one sequence, for all KV heads: first per
// head K as [head_dim][16], then per head V as [16][v_stride], v_stride = head_dim rounded up
// to 16. Elements are f16 (saturated at +-65504) or f32. K and V are always read back from their
// pages, also those of the step being computed, so the result does not depend on how a prompt was
// cut in chunks.
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

#include "engine/ops/cpu/kernels.h"

namespace headrace {

struct Cpu;

struct KvPageShape {
  int kv_heads = 0;
  int head_dim = 0;
  KvFormat format = KvFormat::kF16;

  int v_stride() const { return (head_dim + 15) / 16 * 16; }
  size_t k_bytes() const { return kv_element_bytes(format) * head_dim * kPageTokens; }  // one head
  size_t v_bytes() const { return kv_element_bytes(format) * v_stride() * kPageTokens; }
  size_t page_bytes() const { return kv_heads * (k_bytes() + v_bytes()); }
  size_t k_offset(int head) const { return head * k_bytes(); }
  size_t v_offset(int head) const { return kv_heads * k_bytes() + head * v_bytes(); }
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
