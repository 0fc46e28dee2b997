// Attention of the vector targets (AVX-512, AVX2): tokens of a page across lanes for the scores,
// head dimension for the values. Pages are taken in blocks: first the scores of all of them, then
// the weights, then the sums of values. The file compiles itself once per target.

#include <algorithm>
#include <limits>

#include "engine/group_quant.h"
#include "engine/ops/cpu/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/cpu/vector_attention.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "engine/ops/cpu/vector_common.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

HWY_BEFORE_NAMESPACE();
namespace headrace::HWY_NAMESPACE {
namespace {

// Queries and pages whose dot products are in registers at the same time.
constexpr int kTileQueries = kL == 16 ? 8 : 4;
constexpr int kStepPages = kL == 16 ? 2 : 1;
// So many pages that the latencies of one page's softmax hide behind those of the others.
constexpr int kBlockPages = 4;
// Stride of the queries, element by element.
constexpr int kMost = QueryTile::kMost;

// ---- K and V of one head in a page, as floats (ops/kv_elements.h says where they are) ----

// 16 elements that are not quantised.
template <KvFormat kFormat>
void load_plain(const std::byte* from, V* out) {
  for (int v = 0; v < kHalfV; ++v) {
    if constexpr (kFormat == KvFormat::kF16) {
      out[v] = load_f16(from + v * kL * 2);
    } else {
      out[v] = hn::LoadU(kF, reinterpret_cast<const float*>(from) + v * kL);
    }
  }
}

B load_bytes(const std::byte* from) {
  return hn::LoadU(Bytes(), reinterpret_cast<const uint8_t*>(from));
}

// 16 elements from their codes.
void from_codes(B codes, const V* scale, const V* minimum, V* out) {
  to_float<false>(codes, out);
  for (int v = 0; v < kHalfV; ++v) out[v] = hn::Add(hn::Mul(scale[v], out[v]), minimum[v]);
}

// The scales and minima of a page's 16 tokens for one group of elements.
struct TokenScales {
  TokenScales(const std::byte* part, int groups, int group) {
    const std::byte* const scales = part + group * kPageTokens * 2;
    for (int v = 0; v < kHalfV; ++v) {
      scale[v] = load_f16(scales + v * kL * 2);
      minimum[v] = load_f16(scales + (groups * kPageTokens + v * kL) * 2);
    }
  }
  V scale[kHalfV], minimum[kHalfV];
};

int groups_of(const AttentionTile& t) { return (t.head_dim + kQuantGroup - 1) / kQuantGroup; }

// Element d of all 16 tokens, d in one group.
template <KvFormat kFormat, int kBits = kv_code_bits(kFormat)>
struct Keys {
  Keys(const AttentionTile& t, const std::byte* part, int group)
      : scales(part, groups_of(t), group), codes(part + groups_of(t) * kPageTokens * 4) {}
  const std::byte* at(int d) const {
    return codes + static_cast<size_t>(kBits == 8 ? d : d / 2) * kPageTokens;
  }
  void load(int d, V* out) const {
    const B bytes = load_bytes(at(d));
    from_codes(kBits == 8 ? bytes : field<4, 0>(bytes, d % 2 * 4), scales.scale, scales.minimum,
               out);
  }
  TokenScales scales;
  const std::byte* codes;
};
template <KvFormat kFormat>
struct Keys<kFormat, 0> {
  Keys(const AttentionTile&, const std::byte* part, int) : elements(part) {}
  const std::byte* at(int d) const {
    return elements + static_cast<size_t>(d) * kPageTokens * kBytes;
  }
  void load(int d, V* out) const { load_plain<kFormat>(at(d), out); }
  static constexpr size_t kBytes = kv_element_bytes(kFormat);
  const std::byte* elements;
};

// kSpans * 16 elements of one token from element d on, all in one group.
template <KvFormat kFormat, int kSpans, int kBits = kv_code_bits(kFormat)>
struct Values {
  Values(const AttentionTile& t, const std::byte* part, int d)
      : codes(part + groups_of(t) * kPageTokens * 4 + d * kBits / 8) {
    const TokenScales s(part, groups_of(t), d / kQuantGroup);
    for (int v = 0; v < kHalfV; ++v) {
      hn::StoreU(s.scale[v], kF, scale + v * kL);
      hn::StoreU(s.minimum[v], kF, minimum + v * kL);
    }
  }
  void load(const AttentionTile& t, int token, V* out) const {
    V of_scale[kHalfV], of_minimum[kHalfV];
    std::fill_n(of_scale, kHalfV, hn::Set(kF, scale[token]));
    std::fill_n(of_minimum, kHalfV, hn::Set(kF, minimum[token]));
    const std::byte* const from = at(t, token);
    if constexpr (kBits == 8) {
      for (int span = 0; span < kSpans; ++span) {
        from_codes(load_bytes(from + span * 16), of_scale, of_minimum, out + span * kHalfV);
      }
    } else {
      B pairs;
      if constexpr (kSpans == 2) {
        pairs = load_bytes(from);
      } else {
        pairs = hn::ZeroExtendVector(
            Bytes(), hn::LoadU(hn::Half<Bytes>(), reinterpret_cast<const uint8_t*>(from)));
      }
      const B low = field<4, 0>(pairs, 0), high = field<4, 0>(pairs, 4);
      from_codes(hn::InterleaveLower(low, high), of_scale, of_minimum, out);
      if constexpr (kSpans == 2) {
        from_codes(hn::InterleaveUpper(Bytes(), low, high), of_scale, of_minimum, out + kHalfV);
      }
    }
  }
  const std::byte* at(const AttentionTile& t, int token) const {
    return codes + token * t.v_stride * kBits / 8;
  }
  float scale[kPageTokens], minimum[kPageTokens];
  const std::byte* codes;
};
template <KvFormat kFormat, int kSpans>
struct Values<kFormat, kSpans, 0> {
  Values(const AttentionTile&, const std::byte* part, int d) : elements(part + d * kBytes) {}
  void load(const AttentionTile& t, int token, V* out) const {
    for (int span = 0; span < kSpans; ++span) {
      load_plain<kFormat>(at(t, token) + span * 16 * kBytes, out + span * kHalfV);
    }
  }
  const std::byte* at(const AttentionTile& t, int token) const {
    return elements + token * t.v_stride * kBytes;
  }
  static constexpr int kBytes = kv_element_bytes(kFormat);
  const std::byte* elements;
};

// ---- One block of pages, for kQueries queries ----

struct Block {
  int pages = 0;
  const std::byte *k[kBlockPages], *v[kBlockPages];
  const std::byte *next_k[kBlockPages], *next_v[kBlockPages];  // to be fetched meanwhile
};

// Of some queries, over the pages before; queries in lanes.
struct Softmax {
  alignas(64) float max[16] = {}, sum[16] = {};
};

// Of the same queries over a block's pages.
struct Weights {
  alignas(64) float p[kBlockPages][kMost][kPageTokens];  // scores first
  alignas(64) float keep[kBlockPages][16];
  int valid[kBlockPages][kMost];  // tokens of the page that a query sees
  int seen_by_all[kBlockPages], seen_by_any[kBlockPages];
};

// q [head_dim][kMost].
template <KvFormat kFormat, int kQueries, int kPages>
void score(const AttentionTile& t, const float* q, const Block& block, int first, Weights& w) {
  V dot[kPages][kQueries][kHalfV];
  // Unrolled here, or GCC 12 makes a memset of it and keeps the sums in memory.
#pragma GCC unroll 2
  for (int p = 0; p < kPages; ++p) {
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kHalfV; ++v) dot[p][i][v] = hn::Zero(kF);
    }
  }
  for (int begin = 0; begin < t.head_dim; begin += kQuantGroup) {
    const int end = std::min(begin + kQuantGroup, t.head_dim);
    const int group = begin / kQuantGroup;
    const Keys<kFormat> keys[2] = {{t, block.k[first], group},
                                   {t, block.k[first + kPages - 1], group}};
    for (int d = begin; d < end; ++d) {
      V key[kPages][kHalfV];
      for (int p = 0; p < kPages; ++p) {
        keys[p].load(d, key[p]);
        hwy::Prefetch(block.next_k[first + p] + (keys[p].at(d) - block.k[first + p]));
      }
      for (int i = 0; i < kQueries; ++i) {
        const V element = hn::Set(kF, q[d * kMost + i]);
        for (int p = 0; p < kPages; ++p) {
          for (int v = 0; v < kHalfV; ++v) {
            dot[p][i][v] = hn::MulAdd(element, key[p][v], dot[p][i][v]);
          }
        }
      }
    }
  }
  const V scale = hn::Set(kF, t.scale);
  for (int p = 0; p < kPages; ++p) {
    for (int i = 0; i < kQueries; ++i) {
      for (int v = 0; v < kHalfV; ++v) {
        hn::Store(hn::Mul(dot[p][i][v], scale), kF, w.p[first + p][i] + v * kL);
      }
    }
  }
}

// Lane i: the 16 numbers of row i, folded as ops/canonical.h says of sums: lanes 8 apart, then 4, 2
// and 1. Other lanes than kTileQueries: anything.
template <class Fold>
V fold_rows(V (&rows)[kTileQueries][kHalfV], Fold fold) {
  constexpr int kPairs = kTileQueries / 2;
  using Wide = hn::Repartition<double, F>;
  V by8[kPairs * 16 / kL];
  if constexpr (kL == 16) {
    for (int i = 0; i < kPairs; ++i) {
      const V a = rows[2 * i][0], b = rows[2 * i + 1][0];
      by8[i] = fold(hn::ConcatLowerLower(kF, b, a), hn::ConcatUpperUpper(kF, b, a));
    }
  } else {
    for (int i = 0; i < kTileQueries; ++i) by8[i] = fold(rows[i][0], rows[i][kHalfV - 1]);
  }
  V by4[2];
  for (int i = 0; i < 2; ++i) {
    const V a = by8[2 * i], b = by8[2 * i + 1];
    by4[i] = fold(hn::OddEvenBlocks(b, a), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(a, b)));
  }
  const auto a = hn::BitCast(Wide(), by4[0]), b = hn::BitCast(Wide(), by4[1]);
  const V by2 = fold(hn::BitCast(kF, hn::InterleaveLower(Wide(), a, b)),
                     hn::BitCast(kF, hn::InterleaveUpper(Wide(), a, b)));
  // AVX2 has half as many rows, and lanes.
  constexpr int kMore = kL == 16 ? 2 : 0;
  alignas(64) static constexpr int32_t kOrder[16] = {
      0, kL / 2, kL / 4, kL * 3 / 4, kMore, kL / 2 + kMore, kL / 4 + kMore, kL * 3 / 4 + kMore};
  return hn::TableLookupLanes(fold(by2, hn::Shuffle2301(by2)), hn::SetTableIndices(kF, kOrder));
}

// Scores -> weights, and the running maximum and sum. Lanes of tokens that are not seen get 0.
template <int kQueries>
void weigh(int pages, bool first, Softmax& state, Weights& w) {
  const auto seen = [&](int page, int i, int v) {
    return hn::FirstN(kF, static_cast<size_t>(std::max(0, w.valid[page][i] - v * kL)));
  };
  const V none = hn::Set(kF, -std::numeric_limits<float>::infinity());
  alignas(64) float max[kBlockPages][kL];
  V rows[kTileQueries][kHalfV];  // of queries, and some that stay as they are
  for (auto& row : rows) {
    for (V& v : row) v = none;
  }
  V before = hn::Load(kF, state.max), sum = hn::Load(kF, state.sum);
  for (int page = 0; page < pages; ++page, first = false) {
    const bool whole = w.seen_by_all[page] == kPageTokens;
    for (int i = 0; i < kQueries; ++i) {
      for (int v = 0; v < kHalfV; ++v) {
        rows[i][v] = hn::Max(hn::Load(kF, w.p[page][i] + v * kL), none);  // NaN -> none
        if (!whole) rows[i][v] = hn::IfThenElse(seen(page, i, v), rows[i][v], none);
      }
    }
    const V here = fold_rows(rows, [](V a, V b) { return hn::Max(a, b); });
    const V both = first ? here : hn::Max(before, here);
    hn::Store(first ? hn::Set(kF, 1.0f) : exp(hn::Sub(before, both)), kF, w.keep[page]);
    hn::Store(both, kF, max[page]);
    before = both;
  }
  for (int page = 0; page < pages; ++page) {
    const bool whole = w.seen_by_all[page] == kPageTokens;
    for (int i = 0; i < kQueries; ++i) {
      for (int v = 0; v < kHalfV; ++v) {
        float* const p = w.p[page][i] + v * kL;
        V e = exp(hn::Sub(hn::Load(kF, p), hn::Set(kF, max[page][i])));
        if (!whole) e = hn::IfThenElseZero(seen(page, i, v), e);
        hn::Store(e, kF, p);
        rows[i][v] = e;
      }
    }
    const V sums = fold_rows(rows, [](V a, V b) { return hn::Add(a, b); });
    sum = hn::MulAdd(sum, hn::Load(kF, w.keep[page]), sums);
  }
  hn::Store(before, kF, state.max);
  hn::Store(sum, kF, state.sum);
}

// out [kQueries][v_stride]; elements [d, d + kSpans * 16).
template <KvFormat kFormat, int kQueries, int kSpans>
void add_values(const AttentionTile& t, const Block& block, const Weights& w, int d, float* out) {
  constexpr int kVectors = kSpans * kHalfV;
  V sum[kQueries][kVectors];
  for (int i = 0; i < kQueries; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      sum[i][v] = hn::Load(kF, out + i * t.v_stride + d + v * kL);
    }
  }
  for (int page = 0; page < block.pages; ++page) {
    for (int i = 0; i < kQueries; ++i) {
      for (V& s : sum[i]) s = hn::Mul(s, hn::Set(kF, w.keep[page][i]));
    }
    const Values<kFormat, kSpans> values(t, block.v[page], d);
    int token = 0;
    for (; token < w.seen_by_all[page]; ++token) {
      V value[kVectors];
      values.load(t, token, value);
      hwy::Prefetch(block.next_v[page] + (values.at(t, token) - block.v[page]));
      for (int i = 0; i < kQueries; ++i) {
        const V p = hn::Set(kF, w.p[page][i][token]);
        for (int v = 0; v < kVectors; ++v) sum[i][v] = hn::MulAdd(p, value[v], sum[i][v]);
      }
    }
    // A query must not add even 0 * v of a later token: v may be infinite, and -0 + 0 is not -0.
    for (; token < w.seen_by_any[page]; ++token) {
      V value[kVectors];
      values.load(t, token, value);
      for (int i = 0; i < kQueries; ++i) {
        if (token >= w.valid[page][i]) continue;
        const V p = hn::Set(kF, w.p[page][i][token]);
        for (int v = 0; v < kVectors; ++v) sum[i][v] = hn::MulAdd(p, value[v], sum[i][v]);
      }
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(sum[i][v], kF, out + i * t.v_stride + d + v * kL);
    }
  }
}

// ---- All pages ----

// Queries [from, from + kQueries) of a tile.
template <KvFormat kFormat, int kQueries>
void attend_block(const AttentionTile& t, int from, int64_t number, const Block& block,
                  Softmax& state, float* q, float* out) {
  Weights w;
  for (int page = 0; page < block.pages; ++page) {
    const auto valid = [&](int query) {
      const int64_t left = t.position[query] + 1 - (number + page) * kPageTokens;
      return static_cast<int>(std::clamp<int64_t>(left, 0, kPageTokens));
    };
    for (int i = 0; i < kQueries; ++i) w.valid[page][i] = valid(from + i);
    w.seen_by_all[page] = valid(from);  // positions ascend
    w.seen_by_any[page] = valid(from + kQueries - 1);
  }
  int page = 0;
  for (; page + kStepPages <= block.pages; page += kStepPages) {
    score<kFormat, kQueries, kStepPages>(t, q, block, page, w);
  }
  for (; page < block.pages; ++page) score<kFormat, kQueries, 1>(t, q, block, page, w);
  weigh<kQueries>(block.pages, number == 0, state, w);
  int d = 0;
  for (; kL == 16 && d + 32 <= t.v_stride; d += 32) {
    add_values<kFormat, kQueries, kL / 8>(t, block, w, d, out);
  }
  for (; d < t.v_stride; d += 16) add_values<kFormat, kQueries, 1>(t, block, w, d, out);
}

template <KvFormat kFormat, int kQueries = kTileQueries>
auto attend_block_of(int queries) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries) return attend_block_of<kFormat, kQueries - 1>(queries);
  }
  return &attend_block<kFormat, kQueries>;
}

template <KvFormat kFormat>
void attend_format(const AttentionTile& t) {
  float *const q = t.scratch, *const out = q + kMost * t.v_stride;
  for (int d = 0; d < t.head_dim; ++d) {
    for (int i = 0; i < t.queries; ++i) q[d * kMost + i] = t.q[i][d];
  }
  std::fill_n(out, t.queries * t.v_stride, 0.0f);

  Softmax states[kMost / kTileQueries];
  const int64_t pages = t.position[t.queries - 1] / kPageTokens + 1;
  for (int64_t number = 0; number < pages; number += kBlockPages) {
    Block block;
    block.pages = static_cast<int>(std::min<int64_t>(kBlockPages, pages - number));
    for (int page = 0; page < block.pages; ++page) {
      const int64_t next = std::min(number + page + kBlockPages, pages - 1);
      block.k[page] = t.k_pages[number + page];
      block.v[page] = t.v_pages[number + page];
      block.next_k[page] = t.k_pages[next];
      block.next_v[page] = t.v_pages[next];
    }
    for (int i = 0; i < t.queries; i += kTileQueries) {
      const auto attend = attend_block_of<kFormat>(std::min(kTileQueries, t.queries - i));
      attend(t, i, number, block, states[i / kTileQueries], q + i, out + i * t.v_stride);
    }
  }
  for (int i = 0; i < t.queries; ++i) {
    const float sum = states[i / kTileQueries].sum[i % kTileQueries];
    for (int d = 0; d < t.head_dim; ++d) t.out[i][d] = out[i * t.v_stride + d] / sum;
  }
}

}  // namespace

void attend(const AttentionTile& t) {
  switch (t.format) {
    case KvFormat::kF16:
      return attend_format<KvFormat::kF16>(t);
    case KvFormat::kF32:
      return attend_format<KvFormat::kF32>(t);
    case KvFormat::kQ8:
      return attend_format<KvFormat::kQ8>(t);
    case KvFormat::kQ4:
      return attend_format<KvFormat::kQ4>(t);
  }
}

}  // namespace headrace::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
