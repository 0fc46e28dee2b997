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
  int64_t tiles;  // of queries, of the longest sequence
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

// K of tokens [64 * tile, ...), of the pages with tokens before `end`; rows that no head has are
// zero, since they meet zeros of q.
template <int kDim>
__device__ void load_k(const KvPageShape& shape, const TilePages& pages, int kv_head, int tile,
                       int end, char* shared) {
  using L = Layout<kDim>;
  char* const slot = L::slot(shared, 2 * tile);
  const auto t = static_cast<int>(threadIdx.x);
  const int left = (end - tile * kTileTokens + kPageTokens - 1) / kPageTokens;
#pragma unroll 1
  for (int page = 0; page < kTilePages; ++page) {
    if (page >= left) break;
    const std::byte* const from = pages[tile % 2][page] + shape.k_offset(kv_head);
#pragma unroll
    for (int i = t; i < L::kChunks; i += kThreads) {
      char* const to = slot + L::k(page, i / 2, i % 2);
      if (i / 2 < shape.head_dim) {
        copy_16(to, from + i * 16);
      } else {
        *reinterpret_cast<uint4*>(to) = uint4{};
      }
    }
  }
  end_copies();
}

// V of the same; what is missing is zero.
template <int kDim>
__device__ void load_v(const KvPageShape& shape, const TilePages& pages, int kv_head, int tile,
                       int end, char* shared) {
  using L = Layout<kDim>;
  constexpr int kRowChunks = kDim / 8;
  char* const slot = L::slot(shared, 2 * tile + 1);
  const auto t = static_cast<int>(threadIdx.x);
  const int left = (end - tile * kTileTokens + kPageTokens - 1) / kPageTokens;
  const int stride = shape.v_stride();
#pragma unroll 1
  for (int page = 0; page < kTilePages; ++page) {
    const std::byte* const from =
        page < left ? pages[tile % 2][page] + shape.v_offset(kv_head) : nullptr;
#pragma unroll
    for (int i = t; i < L::kChunks; i += kThreads) {
      const int token = i / kRowChunks, d = i % kRowChunks * 8;
      if (d >= stride) continue;
      char* const to = slot + L::v(page, token, d);
      if (from) {
        copy_16(to, from + (token * stride + d) * 2);
      } else {
        *reinterpret_cast<uint4*>(to) = uint4{};
      }
    }
  }
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
  int64_t at[2];       // of the query's first element
};

// What they have seen so far.
template <int kDim>
struct Seen {
  float o[kDim / 8][4] = {};
  float max[2] = {kNothing, kNothing};
  float sum[2][kTilePages] = {};  // of weights, by the page's place in its tile
};

template <int kDim>
__device__ void load_queries(const Work& work, const AttentionSequence& sequence, int kv_head,
                             int64_t first, Queries<kDim>& w) {
  const int group = work.heads / work.shape.kv_heads, dim = work.shape.head_dim;
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t query = first + lane / 4 + 8 * r, row = query / group;
    const bool is_there = row < sequence.rows;
    w.position[r] = is_there ? static_cast<int>(sequence.first_position + row) : -1;
    w.at[r] = ((sequence.first_row + row) * work.heads + kv_head * group + query % group) * dim;
    const auto pair = [&](int d) {
      if (!is_there || d >= dim) return 0u;
      const float2 from = *reinterpret_cast<const float2*>(work.q + w.at[r] + d);
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

// Scores of the first `pages` pages of a tile. `q`: this lane's part of the queries, 32 apart.
template <int kDim>
__device__ void score(const char* slot, int pages, const uint4* q, float (&s)[kTileTokens / 8][4]) {
  using L = Layout<kDim>;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane % 8 + lane / 8 % 2 * 8, half = lane / 16;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const uint4 queries = q[step * 32];
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      if (page >= pages) break;
      uint32_t k[4];
      load_turned(k, slot + L::k(page, step * 16 + row, half));
      multiply_add(s[2 * page], queries, k[0], k[1]);
      multiply_add(s[2 * page + 1], queries, k[2], k[3]);
    }
  }
}

// The softmax step of the first `pages` pages of a tile. `sees_all`: each query does.
template <int kDim>
__device__ void weigh(Seen<kDim>& w, const int (&position)[2], int first_token, int pages,
                      bool sees_all, float (&s)[kTileTokens / 8][4], uint4 (&p)[kTilePages]) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  float keep[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    // Of the tile's tokens, the last one that the query sees.
    const int seen = position[r] - first_token;
    float most = kNothing;
#pragma unroll
    for (int n = 0; n < kTileTokens / 8; ++n) {
      if (n / 2 >= pages) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = s[n][2 * r + i];
        if (!sees_all && n * 8 + lane % 4 * 2 + i > seen) score = -INFINITY;
        most = fmaxf(most, score);
      }
    }
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
    if (page >= pages) break;
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
__device__ void write_queries(const Work& work, const int (&position)[2], int64_t (&at)[2],
                              const Seen<kDim>& w, char* room) {
  constexpr int kRow = Layout<kDim>::kVRow, kRowChunks = kDim / 8;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int dim = work.shape.head_dim;
  const bool by_rows = dim % 8 == 0 && reinterpret_cast<uintptr_t>(work.out) % sizeof(uint4) == 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = row_sum(w.sum[r]);
    const bool is_there = position[r] >= 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int d = n * 8 + lane % 4 * 2;
      if (d >= dim || !is_there) continue;
      Half* const to = by_rows ? reinterpret_cast<Half*>(room + (lane / 4 + 8 * r) * kRow) + d
                               : work.out + at[r] + d;
      store_pair(to, w.o[n][2 * r] / sum, w.o[n][2 * r + 1] / sum);
    }
    if (!is_there) at[r] = -1;
  }
  if (!by_rows) return;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kWarpQueries * kRowChunks / 32; ++i) {
    const int chunk = i * 32 + lane, row = chunk / kRowChunks, d = chunk % kRowChunks * 8;
    const int64_t low = __shfl_sync(~0u, at[0], row % 8 * 4),
                  high = __shfl_sync(~0u, at[1], row % 8 * 4), first = row < 8 ? low : high;
    if (first < 0 || d >= dim) continue;
    *reinterpret_cast<uint4*>(work.out + first + d) =
        *reinterpret_cast<const uint4*>(room + row * kRow + d * 2);
  }
}

}  // namespace headrace::cuda
