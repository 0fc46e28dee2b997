// Causal attention over a paged KV cache.
//
// Pages: ops/kv_elements.h. K and V are always read back from their pages, also those of the step
// being computed, so the result does not depend on how a prompt was cut in chunks.
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

#include "engine/both.h"
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

// Up to kMost queries of one sequence that share a KV head: consecutive (row, head of the group).
struct QueryTile {
  static constexpr int kMost = 8;
  int queries;
  const float* q[kMost];    // [head_dim]
  float* out[kMost];        // [head_dim]
  int64_t position[kMost];  // last token seen, ascending
};

// Tiles of a sequence for each KV head; `group`: query heads that share one.
HEADRACE_BOTH constexpr int64_t query_tiles(int64_t rows, int group) {
  return (rows * group + QueryTile::kMost - 1) / QueryTile::kMost;
}

// q and out as in attention().
HEADRACE_BOTH inline QueryTile query_tile(const KvPageShape& shape,
                                          const AttentionSequence& sequence, int64_t tile,
                                          int kv_head, int heads, const float* q, float* out) {
  const int group = heads / shape.kv_heads;
  const int64_t first = tile * QueryTile::kMost, left = sequence.rows * group - first;
  QueryTile t{};
  t.queries = static_cast<int>(left < QueryTile::kMost ? left : QueryTile::kMost);
  for (int j = 0; j < t.queries; ++j) {
    const int64_t row = (first + j) / group, head = kv_head * group + (first + j) % group;
    const int64_t at = ((sequence.first_row + row) * heads + head) * shape.head_dim;
    t.q[j] = q + at;
    t.out[j] = out + at;
    t.position[j] = sequence.first_position + row;
  }
  return t;
}

// The K and V of a sequence's rows are stored in so many pieces, each by itself.
HEADRACE_BOTH inline int64_t store_pieces(const KvPageShape& shape,
                                          const AttentionSequence& sequence) {
  return sequence.rows * shape.kv_heads * shape.groups() * 2;
}

// k and v as in store_kv().
HEADRACE_BOTH inline void store_piece(const KvPageShape& shape, const AttentionSequence& sequence,
                                      int64_t piece, const float* k, const float* v) {
  const bool is_k = piece % 2 == 0;
  const auto group = static_cast<int>(piece / 2 % shape.groups());
  const int64_t of_row = piece / 2 / shape.groups(), row = of_row / shape.kv_heads;
  const auto head = static_cast<int>(of_row % shape.kv_heads);
  const int64_t at = ((sequence.first_row + row) * shape.kv_heads + head) * shape.head_dim;
  const int64_t position = sequence.first_position + row;
  std::byte* const page = sequence.pages[position / kPageTokens];
  store_kv_group(shape, is_k, (is_k ? k : v) + at, group, static_cast<int>(position % kPageTokens),
                 page + (is_k ? shape.k_offset(head) : shape.v_offset(head)));
}

// Writes K and V of the rows, [rows][kv_heads * head_dim] each, into their pages.
void store_kv(const Cpu& cpu, const KvPageShape& shape,
              std::span<const AttentionSequence> sequences, const float* k, const float* v);

// out[row][heads * head_dim] from q of the same shape. heads is a multiple of kv_heads. The K and V
// of all rows must be stored before.
void attention(const Cpu& cpu, const KvPageShape& shape,
               std::span<const AttentionSequence> sequences, int heads, float scale, const float* q,
               float* out);

}  // namespace headrace
