// Pieces of the attention kernels in half_attention_blocks.cuh: tiles of K and V in shared memory,
// a warp's queries, and the softmax step. Comes after warp_instructions.cuh, or what stands for it
// where there is no GPU (tests/ops/emulated_gpu.h).
#pragma once

#include <cstdint>

#include "engine/half.h"
#include "engine/ops/attention.h"

namespace headrace::cuda {

constexpr int kTilePages = 4;
constexpr int kTileTokens = kTilePages * kPageTokens;
constexpr int kWarpQueries = 16;
constexpr int kSlots = 3;           // halves of tiles in shared memory, K and V in turn
constexpr int kThreads = 128;       // of a block
constexpr float kNothing = -1e30f;  // the maximum before the first token

struct Work {
  KvPageShape shape;
  const AttentionSequence* sequences;
  int tiles;  // of queries, of the longest sequence
  int heads;
  float scale;  // times log2(e)
  const float* q;
  Half* out;
};

// Where the K or V of a tile lies in its slot of shared memory. K: [page][d][16 tokens], whose two
// 16-byte halves change places in every other four rows. V: [token][kDim], rows 16 bytes apart. So
// eight rows that are read at once are in different banks.
template <int kDim>
struct Layout {
  static constexpr int kVRow = kDim * 2 + 16;
  static constexpr int kPageK = kDim * 32;
  static constexpr int kPageV = kPageTokens * kVRow;
  static constexpr int kSlot = kTilePages * kPageV;
  static constexpr int kBytes = kSlots * kSlot;
  static constexpr int kChunks = kDim * 2;  // of 16 bytes, of a page's K or V

  __device__ static int k(int page, int d, int half) {
    return page * kPageK + d * 32 + (half ^ ((d >> 2) & 1)) * 16;
  }
  __device__ static int v(int page, int token, int d) {
    return page * kPageV + token * kVRow + d * 2;
  }
  // Halves come in the order K of tile 0, V of tile 0, K of tile 1, ...
  __device__ static char* slot(char* shared, int half_tile) {
    return shared + half_tile % kSlots * kSlot;
  }
};

// Where the pages of two tiles are, in shared memory: it takes as long to find out as to read them.
using TilePages = const std::byte* [2][kTilePages];

// The page of a tile that this thread looks up for all, if it has tokens before `end`.
inline __device__ const std::byte* my_page(std::byte* const* pages, int tile, int end) {
  const int number = tile * kTilePages + static_cast<int>(threadIdx.x);
  return threadIdx.x < kTilePages && number * kPageTokens < end ? pages[number] : nullptr;
}

inline __device__ void put_page(TilePages& pages, int tile, const std::byte* page) {
  if (threadIdx.x < kTilePages) pages[tile % 2][threadIdx.x] = page;
}

// Calls f(page, i, where the page is, whether it has tokens before `end`) for this thread's pieces
// of 16 bytes of a tile's K or V: the i-th of a page. Where it has none, another page is named.
template <int kDim, typename F>
__device__ void each_piece(const TilePages& pages, int tile, int end, F f) {
  constexpr int kPieces = Layout<kDim>::kChunks;
  static_assert(kTilePages * kPieces % kThreads == 0);
  const int left = (end - tile * kTileTokens + kPageTokens - 1) / kPageTokens;
#pragma unroll
  for (int n = 0; n < kTilePages * kPieces / kThreads; ++n) {
    // The compiler does not know how many threads there are.
    const int piece = n * kThreads + static_cast<int>(threadIdx.x % kThreads);
    const int page = piece / kPieces;
    f(page, piece % kPieces, pages[tile % 2][page < left ? page : 0], page < left);
  }
}

// K of tokens [64 * tile, ...), of the pages with tokens before `end`; what is missing is zero, and
// rows that no head has, since they meet zeros of q.
template <int kDim>
__device__ void load_k(const KvPageShape& shape, const TilePages& pages, int kv_head, int tile,
                       int end, char* shared) {
  using L = Layout<kDim>;
  char* const slot = L::slot(shared, 2 * tile);
  const size_t first = shape.k_offset(kv_head);
  each_piece<kDim>(pages, tile, end, [&](int page, int i, const std::byte* from, bool is_there) {
    copy_16(slot + L::k(page, i / 2, i % 2), from + first + i * 16,
            is_there && i / 2 < shape.head_dim);
  });
  end_copies();
}

// V of the same; what is missing is zero.
template <int kDim>
__device__ void load_v(const KvPageShape& shape, const TilePages& pages, int kv_head, int tile,
                       int end, char* shared) {
  using L = Layout<kDim>;
  constexpr int kRowPieces = kDim / 8;
  char* const slot = L::slot(shared, 2 * tile + 1);
  const size_t first = shape.v_offset(kv_head);
  const int stride = shape.v_stride();
  each_piece<kDim>(pages, tile, end, [&](int page, int i, const std::byte* from, bool is_there) {
    const int token = i / kRowPieces, d = i % kRowPieces * 8;
    copy_16(slot + L::v(page, token, d), from + first + (token * stride + d) * 2,
            is_there && d < stride);
  });
  end_copies();
}

// V of tokens from `first` on, which no query sees and which may not be numbers.
template <int kDim>
__device__ void clear_tokens(const KvPageShape& shape, int first, char* slot) {
  using L = Layout<kDim>;
  const int chunks = shape.v_stride() / 8;
  for (int i = static_cast<int>(threadIdx.x); i < (kTileTokens - first) * chunks; i += kThreads) {
    const int token = first + i / chunks;
    *reinterpret_cast<uint4*>(
        slot + L::v(token / kPageTokens, token % kPageTokens, i % chunks * 8)) = uint4{};
  }
}

// A lane's part of 16 queries: rows `lane / 4` and 8 more, columns 2 * (lane % 4) and the next one
// of every eight.
template <int kDim>
struct Queries {
  uint4 q[kDim / 16];  // as a product reads them
  int position[2];     // -1: there is no such query
};

// What they have seen so far.
template <int kDim>
struct Seen {
  float o[kDim / 8][4] = {};
  float max[2] = {kNothing, kNothing};
  float sum[2][kTilePages] = {};  // of weights, by the page's place in its tile
};

// Where the query's first element is, of q and of what becomes of it.
inline __device__ int64_t place_of(const Work& work, const AttentionSequence& sequence, int kv_head,
                                   int query) {
  const int group = work.heads / work.shape.kv_heads;
  const int64_t row = sequence.first_row + query / group;
  return (row * work.heads + kv_head * group + query % group) * work.shape.head_dim;
}

template <int kDim>
__device__ void load_queries(const Work& work, const AttentionSequence& sequence, int kv_head,
                             int first, Queries<kDim>& w) {
  const int group = work.heads / work.shape.kv_heads, dim = work.shape.head_dim;
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = first + lane / 4 + 8 * r, row = query / group;
    const bool is_there = row < sequence.rows;
    const int64_t at = place_of(work, sequence, kv_head, query);
    w.position[r] = is_there ? static_cast<int>(sequence.first_position + row) : -1;
    const auto pair = [&](int d) {
      if (!is_there || d >= dim) return 0u;
      const float2 from = *reinterpret_cast<const float2*>(work.q + at + d);
      return pack(from.x * work.scale, from.y * work.scale);
    };
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int d = step * 16 + lane % 4 * 2;
      (r == 0 ? w.q[step].x : w.q[step].y) = pair(d);
      (r == 0 ? w.q[step].z : w.q[step].w) = pair(d + 8);
    }
  }
}

// Scores of 16 tokens become weights of query r, as a product reads them.
inline __device__ void weigh_page(const float (&low)[4], const float (&high)[4], int r, float most,
                                  float& sum, uint32_t& p_low, uint32_t& p_high) {
  p_low = pack(exp2_of(low[2 * r] - most), exp2_of(low[2 * r + 1] - most));
  p_high = pack(exp2_of(high[2 * r] - most), exp2_of(high[2 * r + 1] - most));
  const float2 first = unpack(p_low), second = unpack(p_high);
  sum += first.x;
  sum += first.y;
  sum += second.x;
  sum += second.y;
}

inline __device__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}

// Of the weights of a query, from those of its four lanes.
inline __device__ float row_sum(const float (&sums)[kTilePages]) {
  float sum = sums[0];
#pragma unroll
  for (int page = 1; page < kTilePages; ++page) sum += sums[page];
  sum += __shfl_xor_sync(~0u, sum, 1);
  return sum + __shfl_xor_sync(~0u, sum, 2);
}

using Scores = float[kTileTokens / 8][4];

// Scores of the first `pages` pages of a tile, and of one more where they are odd, which nobody
// sees: a branch for each page would keep loads from going ahead. `q`: this lane's part of the
// queries, 32 apart.
template <int kDim>
__device__ void score(const char* slot, int pages, const uint4* q, Scores& s) {
  using L = Layout<kDim>;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane % 8 + lane / 8 % 2 * 8, half = lane / 16;
#pragma unroll
  for (int first = 0; first < kTilePages; first += 2) {
    if (first >= pages) break;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const uint4 queries = q[step * 32];
#pragma unroll
      for (int page = first; page < first + 2; ++page) {
        uint32_t k[4];
        load_turned(k, slot + L::k(page, step * 16 + row, half));
        multiply_add(s[2 * page], queries, k[0], k[1]);
        multiply_add(s[2 * page + 1], queries, k[2], k[3]);
      }
    }
  }
}

// The softmax step of a tile. `sees_all`: each query does.
template <int kDim>
__device__ void weigh(Seen<kDim>& w, const int (&position)[2], int first_token, bool sees_all,
                      Scores& s, uint4 (&p)[kTilePages]) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  if (!sees_all) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Of the tile's tokens that this lane has, the last one that the query sees.
      const int seen = position[r] - first_token - lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kTileTokens / 8; ++n) {
        if (n * 8 > seen) s[n][2 * r] = -INFINITY;
        if (n * 8 + 1 > seen) s[n][2 * r + 1] = -INFINITY;
      }
    }
  }
  float keep[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = kNothing;
#pragma unroll
    for (int n = 0; n < kTileTokens / 8; ++n)
      most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    most = fmaxf(row_max(most), w.max[r]);
    keep[r] = exp2_of(w.max[r] - most);
    w.max[r] = most;
  }
  // Times one changes nothing.
  if (__any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) w.o[n][i] *= keep[i / 2];
    }
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      w.sum[0][page] *= keep[0];
      w.sum[1][page] *= keep[1];
    }
  }
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
    weigh_page(s[2 * page], s[2 * page + 1], 0, w.max[0], w.sum[0][page], p[page].x, p[page].z);
    weigh_page(s[2 * page], s[2 * page + 1], 1, w.max[1], w.sum[1][page], p[page].y, p[page].w);
  }
}

// o += weights * V of the first `pages` pages.
template <int kDim>
__device__ void add_values(const char* slot, int pages, const uint4 (&p)[kTilePages],
                           Seen<kDim>& w) {
  using L = Layout<kDim>;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane % 8 + lane / 8 % 2 * 8, half = lane / 16;
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
    if (page >= pages) break;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t v[4];
      load_turned(v, slot + L::v(page, row, step * 16 + half * 8));
      multiply_add(w.o[2 * step], p[page], v[0], v[1]);
      multiply_add(w.o[2 * step + 1], p[page], v[2], v[3]);
    }
  }
}

inline __device__ void store_pair(Half* to, float low, float high) {
  *reinterpret_cast<uint32_t*>(to) =
      static_cast<uint32_t>(to_half(low).bits) | static_cast<uint32_t>(to_half(high).bits) << 16;
}

// By way of `room`, this warp's [16][kDim * 2 + 16] bytes, so that whole rows are written at once.
template <int kDim>
__device__ void write_queries(const Work& work, const AttentionSequence& sequence, int kv_head,
                              int first, const int (&position)[2], const Seen<kDim>& w,
                              char* room) {
  constexpr int kRow = Layout<kDim>::kVRow, kRowChunks = kDim / 8;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int dim = work.shape.head_dim;
  const bool by_rows = dim % 8 == 0 && reinterpret_cast<uintptr_t>(work.out) % sizeof(uint4) == 0;
  int64_t at[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float share = 1.0f / row_sum(w.sum[r]);
    const bool is_there = position[r] >= 0;
    at[r] = is_there ? place_of(work, sequence, kv_head, first + lane / 4 + 8 * r) : -1;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int d = n * 8 + lane % 4 * 2;
      if (d >= dim || !is_there) continue;
      Half* const to = by_rows ? reinterpret_cast<Half*>(room + (lane / 4 + 8 * r) * kRow) + d
                               : work.out + at[r] + d;
      store_pair(to, w.o[n][2 * r] * share, w.o[n][2 * r + 1] * share);
    }
  }
  if (!by_rows) return;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kWarpQueries * kRowChunks / 32; ++i) {
    const int chunk = i * 32 + lane, row = chunk / kRowChunks, d = chunk % kRowChunks * 8;
    const int64_t low = __shfl_sync(~0u, at[0], row % 8 * 4),
                  high = __shfl_sync(~0u, at[1], row % 8 * 4), to = row < 8 ? low : high;
    if (to < 0 || d >= dim) continue;
    *reinterpret_cast<uint4*>(work.out + to + d) =
        *reinterpret_cast<const uint4*>(room + row * kRow + d * 2);
  }
}

}  // namespace headrace::cuda
