// Attention of the vector targets (AVX-512, AVX2): tokens of a page across lanes for the scores,
// head dimension for the values. A quantised page is first expanded to floats. The file compiles
// itself once per target.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/group_quant.h"
#include "engine/half.h"
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

template <KvFormat kFormat>
V load_kv(const std::byte* page, int64_t index) {
  if constexpr (kFormat == KvFormat::kF16) return load_f16(page + index * 2);
  return hn::LoadU(kF, reinterpret_cast<const float*>(page) + index);
}

// This KV head's parts of a page.
struct Page {
  const std::byte *k, *v;
};

template <KvFormat kFormat>
constexpr size_t kElementBytes = kFormat == KvFormat::kF16 ? 2 : 4;

// Of one query, over the pages before.
struct Softmax {
  float max, sum;
};

// The same of the queries of a page, in lanes, and of that page.
struct PageSoftmax {
  alignas(64) float max[16] = {}, sum[16] = {};
  alignas(64) float keep[16];
  int valid[QueryTile::kMost];  // tokens of the page that a query sees
};

// Dot products of one page -> p[16] of each query, and the running maximum and sum. Lanes past
// `valid` get p = 0.
template <int kQueries>
void page_softmax(V (*dot)[kHalfV], float scale, bool first, PageSoftmax& state,
                  float (*p)[kPageTokens]) {
  const V none = hn::Set(kF, -std::numeric_limits<float>::infinity());
  const auto seen = [&](int i, int v) {
    return hn::FirstN(kF, static_cast<size_t>(std::max(0, state.valid[i] - v * kL)));
  };
  alignas(64) float of_page[16] = {};
  for (int i = 0; i < kQueries; ++i) {
    V most = none;
    for (int v = 0; v < kHalfV; ++v) {
      V& score = dot[i][v];
      score = hn::IfThenElse(seen(i, v), hn::Mul(score, hn::Set(kF, scale)), none);
      most = hn::IfThenElse(hn::Gt(score, most), score, most);  // passes over NaN
    }
    of_page[i] = hn::GetLane(hn::MaxOfLanes(kF, most));
  }
  for (int at = 0; at < kQueries; at += kL) {
    const V before = hn::Load(kF, state.max + at), here = hn::Load(kF, of_page + at);
    const V max = first ? here : hn::IfThenElse(hn::Lt(before, here), here, before);
    hn::Store(first ? hn::Set(kF, 1.0f) : exp(hn::Sub(before, max)), kF, state.keep + at);
    hn::Store(max, kF, state.max + at);
  }
  alignas(64) float sums[16] = {};
  for (int i = 0; i < kQueries; ++i) {
    V e[kHalfV];
    for (int v = 0; v < kHalfV; ++v) {
      const V shifted = hn::Sub(dot[i][v], hn::Set(kF, state.max[i]));
      e[v] = hn::IfThenElseZero(seen(i, v), exp(shifted));
      hn::StoreU(e[v], kF, p[i] + v * kL);
    }
    sums[i] = tree(e);
  }
  for (int at = 0; at < kQueries; at += kL) {
    const V sum = hn::MulAdd(hn::Load(kF, state.sum + at), hn::Load(kF, state.keep + at),
                             hn::Load(kF, sums + at));
    hn::Store(sum, kF, state.sum + at);
  }
}

// Fetches `next`, a page of the same format, into the caches while it computes.
template <KvFormat kFormat, int kQueries>
void attend_page(const AttentionTile& t, const int* which, Softmax* states, int64_t number,
                 const Page& page, const Page& next) {
  const float* q[kQueries];
  PageSoftmax state;
  int seen_by_all = kPageTokens, seen_by_any = 0;
  for (int i = 0; i < kQueries; ++i) {
    q[i] = t.q[which[i]];
    state.max[i] = states[which[i]].max;
    state.sum[i] = states[which[i]].sum;
    const int64_t left = t.position[which[i]] + 1 - number * kPageTokens;
    state.valid[i] = static_cast<int>(std::min<int64_t>(kPageTokens, left));
    seen_by_all = std::min(seen_by_all, state.valid[i]);
    seen_by_any = std::max(seen_by_any, state.valid[i]);
  }
  V dot[kQueries][kHalfV];
  for (auto& row : dot) {
    for (V& v : row) v = hn::Zero(kF);
  }
  for (int d = 0; d < t.head_dim; ++d) {
    hwy::Prefetch(next.k + d * kPageTokens * kElementBytes<kFormat>);
    for (int v = 0; v < kHalfV; ++v) {
      const V key = load_kv<kFormat>(page.k, d * kPageTokens + v * kL);
      for (int i = 0; i < kQueries; ++i) {
        dot[i][v] = hn::MulAdd(hn::Set(kF, q[i][d]), key, dot[i][v]);
      }
    }
  }
  float p[kQueries][kPageTokens];
  page_softmax<kQueries>(dot, t.scale, number == 0, state, p);
  for (int i = 0; i < kQueries; ++i) states[which[i]] = {state.max[i], state.sum[i]};
  for (int d = 0; d < t.head_dim; d += kL) {
    // out has head_dim elements; the last vector of an odd head_dim is kept in `tail`.
    const bool whole = d + kL <= t.head_dim;
    const auto lanes = hn::FirstN(kF, static_cast<size_t>(t.head_dim - d));
    V out[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      const float* from = t.out[which[i]] + d;
      const V old = whole ? hn::LoadU(kF, from) : hn::MaskedLoad(lanes, kF, from);
      out[i] = hn::Mul(old, hn::Set(kF, state.keep[i]));
    }
    int token = 0;
    for (; token < seen_by_all; ++token) {
      hwy::Prefetch(next.v + (token * t.v_stride + d) * kElementBytes<kFormat>);
      const V value = load_kv<kFormat>(page.v, token * t.v_stride + d);
      for (int i = 0; i < kQueries; ++i) {
        out[i] = hn::MulAdd(hn::Set(kF, p[i][token]), value, out[i]);
      }
    }
    // A query must not add even 0 * v of a later token: v may be infinite, and -0 + 0 is not -0.
    for (; token < seen_by_any; ++token) {
      const V value = load_kv<kFormat>(page.v, token * t.v_stride + d);
      for (int i = 0; i < kQueries; ++i) {
        if (token < state.valid[i]) {
          out[i] = hn::MulAdd(hn::Set(kF, p[i][token]), value, out[i]);
        }
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      float* to = t.out[which[i]] + d;
      if (whole) {
        hn::StoreU(out[i], kF, to);
      } else {
        hn::BlendedStore(out[i], lanes, kF, to);
      }
    }
  }
}

constexpr int kTileQueries = kL == 16 ? 8 : 4;

template <KvFormat kFormat, int kQueries = kTileQueries>
void attend_page_of(int queries, const AttentionTile& t, const int* which, Softmax* states,
                    int64_t number, const Page& page, const Page& next) {
  if constexpr (kQueries > 1) {
    if (queries < kQueries) {
      return attend_page_of<kFormat, kQueries - 1>(queries, t, which, states, number, page, next);
    }
  }
  attend_page<kFormat, kQueries>(t, which, states, number, page, next);
}

// ---- Quantised pages: K and V of a page -> float, in the layout of f32 pages ----

// The scales and minima of a KV head's part of a page; the codes follow.
struct Scales {
  Scales(const AttentionTile& t, const std::byte* part)
      : scale(part),
        minimum(part + groups(t) * kPageTokens * 2),
        codes(part + groups(t) * kPageTokens * 4) {}
  static int groups(const AttentionTile& t) { return (t.head_dim + kQuantGroup - 1) / kQuantGroup; }

  const std::byte *scale, *minimum;  // f16 [groups][16]
  const std::byte* codes;
};

// 16 codes -> floats. The vectors of a page's 16 tokens, or 16 elements of one token.
void store_expanded(B codes, const V* scale, const V* minimum, float* out) {
  V q[kHalfV];
  to_float<false>(codes, q);
  for (int v = 0; v < kHalfV; ++v) {
    hn::StoreU(hn::Add(hn::Mul(scale[v], q[v]), minimum[v]), kF, out + v * kL);
  }
}

// Both fetch the same part of the next page.
template <int kBits>
void expand_k(const AttentionTile& t, const std::byte* part, const std::byte* next, float* k) {
  const Scales s(t, part);
  V scale[kHalfV], minimum[kHalfV];
  for (int d = 0; d < t.head_dim; ++d) {
    if (d % kQuantGroup == 0) {
      for (int v = 0; v < kHalfV; ++v) {
        const int at = d / kQuantGroup * kPageTokens + v * kL;
        scale[v] = load_f16(s.scale + at * 2);
        minimum[v] = load_f16(s.minimum + at * 2);
      }
    }
    const std::byte* row = s.codes + (kBits == 8 ? d : d / 2) * kPageTokens;
    hwy::Prefetch(next + (row - part));
    const B bytes = hn::LoadU(Bytes(), reinterpret_cast<const uint8_t*>(row));
    store_expanded(kBits == 8 ? bytes : field<4, 0>(bytes, d % 2 * 4), scale, minimum,
                   k + d * kPageTokens);
  }
}

// 16 codes of one token from d on.
template <int kBits>
B token_codes(const std::byte* codes) {
  const auto* from = reinterpret_cast<const uint8_t*>(codes);
  if constexpr (kBits == 8) return hn::LoadU(Bytes(), from);
  const B pairs = hn::ZeroExtendVector(Bytes(), hn::LoadU(hn::Half<Bytes>(), from));
  return hn::InterleaveLower(field<4, 0>(pairs, 0), field<4, 0>(pairs, 4));
}

template <int kBits>
void expand_v(const AttentionTile& t, const std::byte* part, const std::byte* next, int tokens,
              float* v_out) {
  const Scales s(t, part);
  for (int first = 0; first < t.v_stride; first += kQuantGroup) {
    const int end = std::min(first + kQuantGroup, t.v_stride);
    float scales[kPageTokens], minima[kPageTokens];
    for (int i = 0; i < kPageTokens; i += kL) {
      const int at = first / kQuantGroup * kPageTokens + i;
      hn::StoreU(load_f16(s.scale + at * 2), kF, scales + i);
      hn::StoreU(load_f16(s.minimum + at * 2), kF, minima + i);
    }
    for (int token = 0; token < tokens; ++token) {
      const std::byte* row = s.codes + token * t.v_stride * kBits / 8;
      hwy::Prefetch(next + (row - part) + first * kBits / 8);
      V scale[kHalfV], minimum[kHalfV];
      std::fill_n(scale, kHalfV, hn::Set(kF, scales[token]));
      std::fill_n(minimum, kHalfV, hn::Set(kF, minima[token]));
      for (int d = first; d < end; d += 16) {
        store_expanded(token_codes<kBits>(row + d * kBits / 8), scale, minimum,
                       v_out + token * t.v_stride + d);
      }
    }
  }
}

// ---- All pages ----

template <KvFormat kFormat>
void attend_format(const AttentionTile& t) {
  constexpr int kBits = kv_code_bits(kFormat);
  constexpr KvFormat kRead = kBits == 0 ? kFormat : KvFormat::kF32;  // what attend_page sees
  Softmax states[QueryTile::kMost] = {};
  int64_t last = 0;
  for (int i = 0; i < t.queries; ++i) {
    std::fill(t.out[i], t.out[i] + t.head_dim, 0.0f);
    last = std::max(last, t.position[i]);
  }
  const int64_t pages = last / kPageTokens + 1;
  for (int64_t number = 0; number < pages; ++number) {
    int which[QueryTile::kMost];
    int count = 0;
    for (int i = 0; i < t.queries; ++i) {
      if (number * kPageTokens <= t.position[i]) which[count++] = i;
    }
    const int64_t after = std::min(number + 1, pages - 1);
    Page page{t.k_pages[number], t.v_pages[number]};
    Page next{t.k_pages[after], t.v_pages[after]};
    if constexpr (kBits != 0) {
      float *k = t.scratch, *v = t.scratch + kPageTokens * t.v_stride;
      expand_k<kBits>(t, page.k, next.k, k);
      const int64_t tokens = std::min<int64_t>(kPageTokens, last + 1 - number * kPageTokens);
      expand_v<kBits>(t, page.v, next.v, static_cast<int>(tokens), v);
      page = next = {reinterpret_cast<const std::byte*>(k), reinterpret_cast<const std::byte*>(v)};
    }
    for (int i = 0; i < count; i += kTileQueries) {
      attend_page_of<kRead>(std::min(kTileQueries, count - i), t, which + i, states, number, page,
                            next);
    }
  }
  for (int i = 0; i < t.queries; ++i) {
    for (int d = 0; d < t.head_dim; ++d) t.out[i][d] /= states[i].sum;
  }
}

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
