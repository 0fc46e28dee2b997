// What GPU threads do for attention over a paged cache, in the canonical order of ops/attention.h,
// so that a row's bits are those of the CPU path. Block programs: ops/cuda/row_blocks.h.
//
// Scores of kTilePages pages are computed at once, by query and token; then the online softmax goes
// page by page. Nothing grows with the context.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "engine/both.h"
#include "engine/ops/attention.h"
#include "engine/ops/canonical.h"
#include "engine/ops/kv_elements.h"

namespace headrace {

inline constexpr int kTilePages = 8;

constexpr int64_t attention_shared_floats(int head_dim) {
  const int64_t tokens = kTilePages * kPageTokens;
  return QueryTile::kMost * (2 * head_dim + tokens + 3 * kTilePages + 2);
}

template <typename Block>
HEADRACE_BOTH void attend_tile(Block& block, const KvPageShape& shape, float scale,
                               std::byte* const* pages_of_sequence, int kv_head,
                               const QueryTile& work) {
  constexpr int kTokens = kTilePages * kPageTokens;
  const int queries = work.queries, dim = shape.head_dim, threads = block.threads();
  float* const q = block.template shared<float>(QueryTile::kMost * dim);
  float* const o = block.template shared<float>(QueryTile::kMost * dim);
  float* const p =
      block.template shared<float>(QueryTile::kMost * kTokens);  // scores, then weights
  float* const top = block.template shared<float>(QueryTile::kMost * kTilePages);
  float* const keep = block.template shared<float>(QueryTile::kMost * kTilePages);
  float* const sums = block.template shared<float>(QueryTile::kMost * kTilePages);
  float* const max = block.template shared<float>(QueryTile::kMost);
  float* const sum = block.template shared<float>(QueryTile::kMost);
  // Calls f(query, i) for i < count of every query.
  const auto for_each = [&](int count, auto f) {
    block.each_thread([&](int t) {
      for (int i = t; i < queries * count; i += threads) f(i / count, i % count);
    });
  };
  // Tokens of a page that a query sees.
  const auto seen = [&](int query, int64_t page) {
    const int64_t tokens = work.position[query] + 1 - page * kPageTokens;
    return static_cast<int>(tokens < 0 ? 0 : tokens < kPageTokens ? tokens : kPageTokens);
  };

  for_each(dim, [&](int query, int d) {
    q[query * dim + d] = work.q[query][d];
    o[query * dim + d] = 0.0f;
    if (d == 0) max[query] = sum[query] = 0.0f;
  });
  const int64_t pages = work.position[queries - 1] / kPageTokens + 1;
  for (int64_t first = 0; first < pages; first += kTilePages) {
    for_each(kTokens, [&](int query, int i) {
      const int64_t page = first + i / kPageTokens;
      const int token = i % kPageTokens;
      if (token >= seen(query, page)) return;
      const std::byte* const k = pages_of_sequence[page] + shape.k_offset(kv_head);
      float dot = 0.0f;
      for (int d = 0; d < dim; ++d) {
        dot = std::fma(q[query * dim + d], k_element(shape, k, token, d), dot);
      }
      p[query * kTokens + i] = dot * scale;
    });
    for_each(kTilePages, [&](int query, int page) {
      float most = -std::numeric_limits<float>::infinity();
      for (int t = 0; t < seen(query, first + page); ++t) {
        const float score = p[query * kTokens + page * kPageTokens + t];
        most = most < score ? score : most;
      }
      top[query * kTilePages + page] = most;
    });
    for_each(1, [&](int query, int) {  // the running maximum
      for (int page = 0; page < kTilePages && seen(query, first + page) > 0; ++page) {
        const int at = query * kTilePages + page;
        const bool begins = first + page == 0;
        const float most = begins ? top[at] : max[query] < top[at] ? top[at] : max[query];
        keep[at] = begins ? 1.0f : canonical_exp(max[query] - most);
        top[at] = max[query] = most;
      }
    });
    for_each(kTokens, [&](int query, int i) {
      const int page = i / kPageTokens;
      float& weight = p[query * kTokens + i];
      weight = i % kPageTokens < seen(query, first + page)
                   ? canonical_exp(weight - top[query * kTilePages + page])
                   : 0.0f;
    });
    for_each(kTilePages, [&](int query, int page) {
      float lanes[kPageTokens];
      for (int t = 0; t < kPageTokens; ++t) {
        lanes[t] = 0.0f + p[query * kTokens + page * kPageTokens + t];
      }
      for (int half = kPageTokens / 2; half > 0; half /= 2) {
        for (int t = 0; t < half; ++t) lanes[t] += lanes[t + half];
      }
      sums[query * kTilePages + page] = lanes[0];
    });
    for_each(dim + 1, [&](int query, int d) {  // the last one: the sum of weights
      for (int page = 0; page < kTilePages; ++page) {
        const int tokens = seen(query, first + page), at = query * kTilePages + page;
        if (tokens == 0) break;
        if (d == dim) {
          sum[query] = std::fma(sum[query], keep[at], sums[at]);
          continue;
        }
        const std::byte* const v = pages_of_sequence[first + page] + shape.v_offset(kv_head);
        float total = o[query * dim + d] * keep[at];
        for (int t = 0; t < tokens; ++t) {
          total = std::fma(p[query * kTokens + page * kPageTokens + t], v_element(shape, v, t, d),
                           total);
        }
        o[query * dim + d] = total;
      }
    });
  }
  for_each(dim, [&](int query, int d) { work.out[query][d] = o[query * dim + d] / sum[query]; });
}

}  // namespace headrace
