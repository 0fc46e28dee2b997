// What a block of the attention kernels does, with its shared memory. Comes after
// warp_instructions.cuh, as half_attention_tiles.cuh does.
#pragma once

#include "engine/ops/cuda/half_attention_tiles.cuh"

namespace headrace::cuda {

constexpr int kWarps = kThreads / 32;

// A block for kWarps tiles of queries of one sequence and KV head, which share what they read.
template <int kDim>
struct Apart {
  static constexpr int kRooms = Layout<kDim>::kBytes;  // of each warp, as large as its output
  static constexpr int kRoom = kWarpQueries * Layout<kDim>::kVRow;
  static constexpr int kPages = kRooms + kWarps * kRoom;
  static constexpr int kBytes = kPages + static_cast<int>(sizeof(TilePages));
};

template <int kDim>
__device__ void attend_apart(const Work& work, char* shared) {
  using L = Layout<kDim>;
  using A = Apart<kDim>;
  TilePages& pages = *reinterpret_cast<TilePages*>(shared + A::kPages);
  const KvPageShape& shape = work.shape;
  const auto number = static_cast<int>(blockIdx.x);
  const AttentionSequence sequence = work.sequences[number / work.tiles];
  const int group = work.heads / shape.kv_heads;
  const auto kv_head = static_cast<int>(blockIdx.y), warp = static_cast<int>(threadIdx.x / 32);
  // The longest first, so that no SM begins one when the others end.
  const int first = (work.tiles - 1 - number % work.tiles) * kWarps * kWarpQueries;
  const auto queries = static_cast<int>(sequence.rows * group);
  if (first >= queries) return;

  // Tokens that some query of the block sees, that the first query of the warp sees, and its last.
  const int mine = first + warp * kWarpQueries;
  const auto tokens_of = [&](int query) {
    return static_cast<int>(sequence.first_position) + min(query, queries - 1) / group + 1;
  };
  const int end = tokens_of(first + kWarps * kWarpQueries - 1);
  const bool works = mine < queries;
  const int all_see = works ? tokens_of(mine) : 0;
  const int some_see = works ? tokens_of(mine + kWarpQueries - 1) : 0;
  const int tiles = (end + kTileTokens - 1) / kTileTokens;
  put_page(pages, 0, my_page(sequence.pages, 0, end));
  put_page(pages, 1, my_page(sequence.pages, 1, end));
  __syncthreads();
  load_k<kDim>(shape, pages, kv_head, 0, end, shared);
  load_v<kDim>(shape, pages, kv_head, 0, end, shared);
  Queries<kDim> part;
  load_queries(work, sequence, kv_head, mine, part);
  // This warp's room: first its queries, each lane's part for itself, then what it writes.
  char* const room = shared + A::kRooms + warp * A::kRoom;
  uint4* const q = reinterpret_cast<uint4*>(room) + threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) q[step * 32] = part.q[step];
  Seen<kDim> seen;
  // The next half is asked for where all have waited for this one, so that who used its slot before
  // is done.
  for (int tile = 0; tile < tiles; ++tile) {
    const std::byte* const later = my_page(sequence.pages, tile + 2, end);
    const bool is_last = tile + 1 == tiles;
    const int begin = tile * kTileTokens;
    // Pages that some query of the warp sees.
    const int here = max(0, min((some_see - begin + kPageTokens - 1) / kPageTokens, kTilePages));
    wait_for_copies<1>();
    __syncthreads();
    is_last ? end_copies() : load_k<kDim>(shape, pages, kv_head, tile + 1, end, shared);
    uint4 p[kTilePages];
    if (here > 0) {
      Scores s = {};
      score<kDim>(L::slot(shared, 2 * tile), here, q, s);
      weigh(seen, part.position, begin, begin + kTileTokens <= all_see, s, p);
    }
    wait_for_copies<1>();
    char* const values = L::slot(shared, 2 * tile + 1);
    if (is_last) {
      __syncthreads();
      clear_tokens<kDim>(shape, end - begin, values);
    }
    __syncthreads();
    is_last ? end_copies() : load_v<kDim>(shape, pages, kv_head, tile + 1, end, shared);
    put_page(pages, tile, later);
    if (here > 0) add_values(values, here, p, seen);
  }
  if (works) write_queries(work, sequence, kv_head, mine, part.position, seen, room);
}

// Four warps for one tile of queries, where there is no more: each has the scores of a page of the
// tile, then some columns of the output. The same sums in the same order as above.
template <int kDim>
struct Together {
  static constexpr int kSteps = (kDim / 16 + kTilePages - 1) / kTilePages;  // of a warp, at most
  static constexpr int kPRow = kTileTokens * 2 + 16;                        // bytes
  static constexpr int kP = Layout<kDim>::kBytes;                           // f16 weights [16][64]
  static constexpr int kMax = kP + kWarpQueries * kPRow;                    // [page][16]
  static constexpr int kSums = kMax + kTilePages * kWarpQueries * 4;        // [page][2][32]
  static constexpr int kPages = kSums + kTilePages * 64 * 4;
  static constexpr int kBytes = kPages + static_cast<int>(sizeof(TilePages));
};

template <int kDim>
__device__ void attend_together(const Work& work, char* shared) {
  using T = Together<kDim>;
  using L = Layout<kDim>;
  static_assert(kWarps == kTilePages);
  TilePages& pages = *reinterpret_cast<TilePages*>(shared + T::kPages);
  auto* const maxima = reinterpret_cast<float*>(shared + T::kMax);
  auto* const sums = reinterpret_cast<float*>(shared + T::kSums);
  const KvPageShape& shape = work.shape;
  const AttentionSequence sequence = work.sequences[blockIdx.x];
  const auto kv_head = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x % 32);
  const auto page = static_cast<int>(threadIdx.x / 32);  // this warp's
  if (sequence.rows == 0) return;

  const auto end = static_cast<int>(sequence.first_position + sequence.rows);
  const int tiles = (end + kTileTokens - 1) / kTileTokens;
  put_page(pages, 0, my_page(sequence.pages, 0, end));
  put_page(pages, 1, my_page(sequence.pages, 1, end));
  __syncthreads();
  load_k<kDim>(shape, pages, kv_head, 0, end, shared);
  load_v<kDim>(shape, pages, kv_head, 0, end, shared);
  Queries<kDim> w;
  load_queries(work, sequence, kv_head, 0, w);
  float o[T::kSteps][2][4] = {}, maximum[2] = {kNothing, kNothing}, sum[2] = {};
  const int row = lane % 8 + lane / 8 % 2 * 8, half = lane / 16;
  for (int tile = 0; tile < tiles; ++tile) {
    const std::byte* const later = my_page(sequence.pages, tile + 2, end);
    const bool is_last = tile + 1 == tiles;
    is_last ? end_copies() : load_k<kDim>(shape, pages, kv_head, tile + 1, end, shared);
    wait_for_copies<2>();
    __syncthreads();

    const char* const keys = L::slot(shared, 2 * tile);
    float s[2][4] = {};
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t k[4];
      load_turned(k, keys + L::k(page, step * 16 + row, half));
      multiply_add(s[0], w.q[step], k[0], k[1]);
      multiply_add(s[1], w.q[step], k[2], k[3]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = kNothing;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = s[i / 2][2 * r + i % 2];
        const int token =
            tile * kTileTokens + page * kPageTokens + i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (token > w.position[r]) score = -INFINITY;
        most = fmaxf(most, score);
      }
      most = row_max(most);
      if (lane % 4 == 0) maxima[page * kWarpQueries + lane / 4 + 8 * r] = most;
    }
    __syncthreads();
    is_last ? end_copies() : load_v<kDim>(shape, pages, kv_head, tile + 1, end, shared);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = maximum[r];
#pragma unroll
      for (int p = 0; p < kTilePages; ++p) {
        most = fmaxf(most, maxima[p * kWarpQueries + lane / 4 + 8 * r]);
      }
      const float keep = exp2_of(maximum[r] - most);
      maximum[r] = most;
#pragma unroll
      for (int n = 0; n < T::kSteps; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          o[n][i][2 * r] *= keep;
          o[n][i][2 * r + 1] *= keep;
        }
      }
      sum[r] *= keep;
      char* const p = shared + T::kP + (lane / 4 + 8 * r) * T::kPRow + page * 32 + lane % 4 * 4;
      weigh_page(s[0], s[1], r, most, sum[r], *reinterpret_cast<uint32_t*>(p),
                 *reinterpret_cast<uint32_t*>(p + 16));
    }
    wait_for_copies<2>();
    char* const values = L::slot(shared, 2 * tile + 1);
    if (is_last) {
      __syncthreads();
      clear_tokens<kDim>(shape, end - tile * kTileTokens, values);
    }
    __syncthreads();
#pragma unroll
    for (int from = 0; from < kTilePages; ++from) {
      const uint4 p = load_straight(shared + T::kP + row * T::kPRow + from * 32 + half * 16);
#pragma unroll
      for (int n = 0; n < T::kSteps; ++n) {
        const int step = n * kTilePages + page;
        if (step >= kDim / 16) continue;
        uint32_t v[4];
        load_turned(v, values + L::v(from, row, step * 16 + half * 8));
        multiply_add(o[n][0], p, v[0], v[1]);
        multiply_add(o[n][1], p, v[2], v[3]);
      }
    }
    put_page(pages, tile, later);
    __syncthreads();
  }

  for (int r = 0; r < 2; ++r) sums[page * 64 + r * 32 + lane] = sum[r];
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float of_pages[kTilePages];
    for (int p = 0; p < kTilePages; ++p) of_pages[p] = sums[p * 64 + r * 32 + lane];
    const float share = 1.0f / row_sum(of_pages);
    if (w.position[r] < 0) continue;
    const int64_t at = place_of(work, sequence, kv_head, lane / 4 + 8 * r);
#pragma unroll
    for (int n = 0; n < T::kSteps; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = (n * kTilePages + page) * 16 + i * 8 + lane % 4 * 2;
        if (d >= shape.head_dim) continue;
        store_pair(work.out + at + d, o[n][i][2 * r] * share, o[n][i][2 * r + 1] * share);
      }
    }
  }
}

}  // namespace headrace::cuda
