// Causal attention over a paged KV cache.
//
// Pages: ops/kv_elements.h. K and V are always read back from
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

#include "engine/ops/cpu/kernels.h"
#include "engine/ops/kv_elements.h"

namespace headrace {

struct Cpu;

// "f16", "f32", "q8", "q4".
const char* kv_format_name(KvFormat format);
// Throws std::invalid_argument that lists the names.
KvFormat kv_format_of(std::string_view name);

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
