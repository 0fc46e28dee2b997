// Pieces of the attention kernels in half_attention.cu: tiles of K and V in shared memory, a warp's
// queries, and the softmax step.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/half.h"
#include "engine/ops/attention.h"

namespace headrace::cuda {

constexpr int kTilePages = 4;
constexpr int kTileTokens = kTilePages * kPageTokens;
constexpr int kWarpQueries = 16;
constexpr int kStages = 2;          // tiles in shared memory: one is used, the next one comes in
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

// Where tiles lie in shared memory. K: [page][d][16 tokens], whose two 16-byte halves change places
// in every other four rows. V: [token][kDim], rows 16 bytes apart. So eight rows that are read at
// once are in different banks.
template <int kDim>
struct Layout {
  static constexpr int kVRow = kDim * 2 + 16;
  static constexpr int kPageK = kDim * 32;
  static constexpr int kPageV = kPageTokens * kVRow;
  static constexpr int kV = kTilePages * kPageK;
  static constexpr int kStage = kV + kTilePages * kPageV;
  static constexpr int kBytes = kStages * kStage;

  __device__ static int k(int page, int d, int half) {
    return page * kPageK + d * 32 + (half ^ ((d >> 2) & 1)) * 16;
  }
  __device__ static int v(int page, int token, int d) {
    return kV + page * kPageV + token * kVRow + d * 2;
  }
};

inline __device__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

inline __device__ void copy_16(char* to, const std::byte* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
}

// Four 8 x 8 matrices whose rows the lanes point to, turned.
inline __device__ void load_turned(uint32_t (&to)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

// The same, not turned.
inline __device__ void load_straight(uint32_t (&to)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

// c += a * b, 16 x 8 from 16 x 16 and 16 x 8.
inline __device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Nothing of a weight is left in f16 where this has become 0.
inline __device__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

inline __device__ uint32_t pack(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Where the pages of two tiles are, in shared memory: it takes as long to find out as to read them.
using TilePages = const std::byte* [2][kTilePages];

// The page of a tile that this thread looks up for all, if it has tokens before `end`.
inline __device__ const std::byte* my_page(const AttentionSequence& sequence, int64_t tile,
                                           int64_t end) {
  const int64_t number = tile * kTilePages + threadIdx.x;
  return threadIdx.x < kTilePages && number * kPageTokens < end ? sequence.pages[number] : nullptr;
}

inline __device__ void put_page(TilePages& pages, int64_t tile, const std::byte* page) {
  if (threadIdx.x < kTilePages) pages[tile % 2][threadIdx.x] = page;
}

// Tokens [64 * tile, ...) of which those before `end` are wanted; what is missing of V is zero.
template <int kDim>
__device__ void load_tile(const KvPageShape& shape, const TilePages& pages, int kv_head,
                          int64_t tile, int64_t end, char* stage) {
  using L = Layout<kDim>;
  const int k_chunks = shape.head_dim * 2, v_chunks = shape.v_stride() / 8;
  for (int page = 0; page < kTilePages; ++page) {
    const int64_t number = tile * kTilePages + page;
    const auto t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    if (number * kPageTokens >= end) {
      for (int i = t; i < kPageTokens * v_chunks; i += threads) {
        *reinterpret_cast<uint4*>(stage + L::v(page, i / v_chunks, i % v_chunks * 8)) = uint4{};
      }
      continue;
    }
    const std::byte* const memory = pages[tile % 2][page];
    const std::byte* const k = memory + shape.k_offset(kv_head);
    const std::byte* const v = memory + shape.v_offset(kv_head);
    for (int i = t; i < k_chunks; i += threads) {
      copy_16(stage + L::k(page, i / 2, i % 2), k + i * 16);
    }
    for (int i = t; i < kPageTokens * v_chunks; i += threads) {
      copy_16(stage + L::v(page, i / v_chunks, i % v_chunks * 8), v + i * 16);
    }
  }
  asm volatile("cp.async.commit_group;");
}

template <int kDim>
__device__ void clear_tokens(const KvPageShape& shape, int first, char* stage) {
  using L = Layout<kDim>;
  const int chunks = shape.v_stride() / 8;
  for (int i = static_cast<int>(threadIdx.x); i < (kTileTokens - first) * chunks;
       i += static_cast<int>(blockDim.x)) {
    const int token = first + i / chunks;
    *reinterpret_cast<uint4*>(
        stage + L::v(token / kPageTokens, token % kPageTokens, i % chunks * 8)) = uint4{};
  }
}

// Rows of K that no head has meet zeros of q, and must be numbers.
template <int kDim>
__device__ void clear_pads(const KvPageShape& shape, char* shared) {
  const int pad = kDim - shape.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < kStages * kTilePages * pad * 2;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / 2, page = row / pad % kTilePages;
    char* const stage = shared + row / pad / kTilePages * Layout<kDim>::kStage;
    *reinterpret_cast<uint4*>(stage + Layout<kDim>::k(page, shape.head_dim + row % pad, i % 2)) =
        uint4{};
  }
}

// A lane's part of 16 queries: rows `lane / 4` and 8 more, columns 2 * (lane % 4) and the next one
// of every eight.
template <int kDim>
struct Queries {
  static constexpr int kSteps = kDim / 16;
  uint32_t q[kSteps][4];
  float o[kDim / 8][4] = {};
  float max[2] = {kNothing, kNothing};
  float sum[2][kTilePages] = {};  // of weights, by the page's place in its tile
  int64_t position[2];            // -1: there is no such query
  int64_t at[2];                  // of the query's first element
};

template <int kDim>
__device__ void load_queries(const Work& work, const AttentionSequence& sequence, int kv_head,
                             int64_t first, Queries<kDim>& w) {
  const int group = work.heads / work.shape.kv_heads, dim = work.shape.head_dim;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  for (int r = 0; r < 2; ++r) {
    const int64_t query = first + lane / 4 + 8 * r, row = query / group;
    const bool is_there = row < sequence.rows;
    w.position[r] = is_there ? sequence.first_position + row : -1;
    w.at[r] = ((sequence.first_row + row) * work.heads + kv_head * group + query % group) * dim;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int d = step * 16 + half * 8 + lane % 4 * 2;
        const bool inside = is_there && d < dim;
        const float* const from = work.q + w.at[r] + d;
        w.q[step][half * 2 + r] = inside ? pack(from[0] * work.scale, from[1] * work.scale) : 0u;
      }
    }
  }
}

// Scores of 16 tokens become weights.
inline __device__ void weigh_page(float (&low)[4], float (&high)[4], int r, float most, float keep,
                                  float& sum) {
  sum *= keep;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float& weight = (i < 2 ? low : high)[2 * r + i % 2];
    weight = __half2float(__float2half_rn(exp2_of(weight - most)));
    sum += weight;
  }
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

// The softmax step of the first `pages` pages of a tile; s becomes the weights.
template <int kDim>
__device__ void weigh(Queries<kDim>& w, int64_t first_token, int pages,
                      float (&s)[kTileTokens / 8][4]) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    // Of the tile's tokens, the last one that the query sees.
    const int seen = static_cast<int>(min(w.position[r] - first_token, int64_t{kTileTokens}));
    float most = kNothing;
#pragma unroll
    for (int n = 0; n < kTileTokens / 8; ++n) {
      if (n / 2 >= pages) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = s[n][2 * r + i];
        if (n * 8 + lane % 4 * 2 + i > seen) score = -INFINITY;
        most = fmaxf(most, score);
      }
    }
    most = fmaxf(row_max(most), w.max[r]);
    const float keep = exp2_of(w.max[r] - most);
    w.max[r] = most;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      w.o[n][2 * r] *= keep;
      w.o[n][2 * r + 1] *= keep;
    }
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      if (page < pages) {
        weigh_page(s[2 * page], s[2 * page + 1], r, most, keep, w.sum[r][page]);
      } else {
        w.sum[r][page] *= keep;
      }
    }
  }
}

// Only the first `pages` pages have tokens that a query of the warp sees.
template <int kDim>
__device__ void attend_tile(const char* stage, int64_t first_token, int pages, Queries<kDim>& w) {
  using L = Layout<kDim>;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane % 8 + lane / 8 % 2 * 8, half = lane / 16;
  float s[kTileTokens / 8][4] = {};
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
    if (page >= pages) break;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t k[4];
      load_turned(k, stage + L::k(page, step * 16 + row, half));
      multiply_add(s[2 * page], w.q[step], k[0], k[1]);
      multiply_add(s[2 * page + 1], w.q[step], k[2], k[3]);
    }
  }
  weigh(w, first_token, pages, s);
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
    if (page >= pages) break;
    const float(&low)[4] = s[2 * page], (&high)[4] = s[2 * page + 1];
    const uint32_t p[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]),
                           pack(high[2], high[3])};
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t v[4];
      load_turned(v, stage + L::v(page, row, step * 16 + half * 8));
      multiply_add(w.o[2 * step], p, v[0], v[1]);
      multiply_add(w.o[2 * step + 1], p, v[2], v[3]);
    }
  }
}

template <int kDim>
__device__ void write_queries(const Work& work, Queries<kDim>& w) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = row_sum(w.sum[r]);
    if (w.position[r] < 0) continue;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int d = n * 8 + lane % 4 * 2;
      if (d >= work.shape.head_dim) continue;
      Half* const to = work.out + w.at[r] + d;
      to[0] = to_half(w.o[n][2 * r] / sum);
      to[1] = to_half(w.o[n][2 * r + 1] / sum);
    }
  }
}

}  // namespace headrace::cuda
