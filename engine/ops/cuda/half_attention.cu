#include "engine/ops/cuda/half_attention.h"

#include <string>

#include "engine/ops/cuda/half_attention_tiles.cuh"
#include "engine/ops/cuda/start.h"

namespace headrace::cuda {
namespace {

// A block for kWarps tiles of queries of one sequence and KV head, which share what they read.
template <int kDim, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kDim <= 128 ? 3 : 1)
    half_attention_kernel(Work work) {
  extern __shared__ uint4 memory[];
  auto* const shared = reinterpret_cast<char*>(memory);
  const KvPageShape& shape = work.shape;
  const AttentionSequence sequence = work.sequences[blockIdx.x / work.tiles];
  const int group = work.heads / shape.kv_heads;
  const auto kv_head = static_cast<int>(blockIdx.y), warp = static_cast<int>(threadIdx.x / 32);
  // The longest first, so that no SM begins one when the others end.
  const int64_t first = (work.tiles - 1 - blockIdx.x % work.tiles) * kWarps * kWarpQueries;
  const int64_t queries = sequence.rows * group;
  if (first >= queries) return;

  clear_pads<kDim>(shape, shared);
  const int64_t last = min(first + kWarps * kWarpQueries, queries) - 1;
  const int64_t end = sequence.first_position + last / group + 1;  // tokens that some query sees
  const int64_t tiles = (end + kTileTokens - 1) / kTileTokens;
  Queries<kDim> w;
  const int64_t mine = first + warp * kWarpQueries;
  const bool works = mine < queries;
  // Tokens that some query of the warp sees.
  const int64_t seen =
      works ? sequence.first_position + (min(mine + kWarpQueries, queries) - 1) / group + 1 : 0;
  __shared__ TilePages pages;
  put_page(pages, 0, my_page(sequence, 0, end));
  put_page(pages, 1, my_page(sequence, 1, end));
  __syncthreads();
  load_tile<kDim>(shape, pages, kv_head, 0, end, shared);
  load_queries(work, sequence, kv_head, mine, w);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    char* const stage = shared + tile % kStages * Layout<kDim>::kStage;
    const std::byte* const later = my_page(sequence, tile + 2, end);
    if (tile + 1 < tiles) {
      load_tile<kDim>(shape, pages, kv_head, tile + 1, end,
                      shared + (tile + 1) % kStages * Layout<kDim>::kStage);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
      __syncthreads();
      // What no query sees may not be a number.
      clear_tokens<kDim>(shape, static_cast<int>(end - tile * kTileTokens), stage);
    }
    __syncthreads();
    const int64_t left = seen - tile * kTileTokens;
    if (left > 0) {
      const int64_t here = min((left + kPageTokens - 1) / kPageTokens, int64_t{kTilePages});
      attend_tile(stage, tile * kTileTokens, static_cast<int>(here), w);
    }
    put_page(pages, tile, later);
    __syncthreads();
  }
  if (works) write_queries(work, w);
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
  static constexpr int kBytes = kSums + kTilePages * 64 * 4;
};

template <int kDim>
__global__ void __launch_bounds__(kTilePages * 32) together_kernel(Work work) {
  using T = Together<kDim>;
  using L = Layout<kDim>;
  extern __shared__ uint4 memory[];
  auto* const shared = reinterpret_cast<char*>(memory);
  auto* const maxima = reinterpret_cast<float*>(shared + T::kMax);
  auto* const sums = reinterpret_cast<float*>(shared + T::kSums);
  const KvPageShape& shape = work.shape;
  const AttentionSequence sequence = work.sequences[blockIdx.x];
  const auto kv_head = static_cast<int>(blockIdx.y), lane = static_cast<int>(threadIdx.x % 32);
  const auto page = static_cast<int>(threadIdx.x / 32);  // this warp's
  if (sequence.rows == 0) return;
  clear_pads<kDim>(shape, shared);

  const int64_t end = sequence.first_position + sequence.rows;
  const int64_t tiles = (end + kTileTokens - 1) / kTileTokens;
  Queries<kDim> w;  // of which o and sum are not used
  load_queries(work, sequence, kv_head, 0, w);
  float o[T::kSteps][2][4] = {}, sum[2] = {};
  const int row = lane % 8 + lane / 8 % 2 * 8, half = lane / 16;
  __shared__ TilePages pages;
  put_page(pages, 0, my_page(sequence, 0, end));
  put_page(pages, 1, my_page(sequence, 1, end));
  __syncthreads();
  load_tile<kDim>(shape, pages, kv_head, 0, end, shared);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    char* const stage = shared + tile % kStages * L::kStage;
    const std::byte* const later = my_page(sequence, tile + 2, end);
    if (tile + 1 < tiles) {
      load_tile<kDim>(shape, pages, kv_head, tile + 1, end,
                      shared + (tile + 1) % kStages * L::kStage);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
      __syncthreads();
      clear_tokens<kDim>(shape, static_cast<int>(end - tile * kTileTokens), stage);
    }
    __syncthreads();

    float s[2][4] = {};
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t k[4];
      load_turned(k, stage + L::k(page, step * 16 + row, half));
      multiply_add(s[0], w.q[step], k[0], k[1]);
      multiply_add(s[1], w.q[step], k[2], k[3]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = kNothing;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = s[i / 2][2 * r + i % 2];
        const int64_t token =
            tile * kTileTokens + page * kPageTokens + i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (token > w.position[r]) score = -INFINITY;
        most = fmaxf(most, score);
      }
      most = row_max(most);
      if (lane % 4 == 0) maxima[page * kWarpQueries + lane / 4 + 8 * r] = most;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = w.max[r];
#pragma unroll
      for (int p = 0; p < kTilePages; ++p) {
        most = fmaxf(most, maxima[p * kWarpQueries + lane / 4 + 8 * r]);
      }
      const float keep = exp2_of(w.max[r] - most);
      w.max[r] = most;
#pragma unroll
      for (int n = 0; n < T::kSteps; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          o[n][i][2 * r] *= keep;
          o[n][i][2 * r + 1] *= keep;
        }
      }
      weigh_page(s[0], s[1], r, most, keep, sum[r]);
      char* const p = shared + T::kP + (lane / 4 + 8 * r) * T::kPRow + page * 32 + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(p) = pack(s[0][2 * r], s[0][2 * r + 1]);
      *reinterpret_cast<uint32_t*>(p + 16) = pack(s[1][2 * r], s[1][2 * r + 1]);
    }
    __syncthreads();
#pragma unroll
    for (int from = 0; from < kTilePages; ++from) {
      uint32_t p[4];
      load_straight(p, shared + T::kP + row * T::kPRow + from * 32 + half * 16);
#pragma unroll
      for (int n = 0; n < T::kSteps; ++n) {
        const int step = n * kTilePages + page;
        if (step >= kDim / 16) continue;
        uint32_t v[4];
        load_turned(v, stage + L::v(from, row, step * 16 + half * 8));
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
    const float all = row_sum(of_pages);
    if (w.position[r] < 0) continue;
#pragma unroll
    for (int n = 0; n < T::kSteps; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = (n * kTilePages + page) * 16 + i * 8 + lane % 4 * 2;
        if (d >= shape.head_dim) continue;
        Half* const to = work.out + w.at[r] + d;
        to[0] = to_half(o[n][i][2 * r] / all);
        to[1] = to_half(o[n][i][2 * r + 1] / all);
      }
    }
  }
}

template <int kDim>
void start_together(cudaStream_t stream, const Work& work, int64_t count) {
  constexpr size_t kShared = Together<kDim>::kBytes;
  const auto kernel = together_kernel<kDim>;
  allow_shared("attention", kernel, kShared,
               "heads of " + std::to_string(work.shape.head_dim) + " elements are larger");
  kernel<<<dim3(static_cast<unsigned>(count), static_cast<unsigned>(work.shape.kv_heads)),
           kTilePages * 32, kShared, stream>>>(work);
  check_start("attention");
}

template <int kDim, int kWarps>
void start(cudaStream_t stream, Work work, int64_t count, int64_t most_rows) {
  const int group = work.heads / work.shape.kv_heads;
  constexpr int64_t kQueries = kWarps * kWarpQueries;
  work.tiles = (most_rows * group + kQueries - 1) / kQueries;
  constexpr size_t kShared = Layout<kDim>::kBytes;
  const auto kernel = half_attention_kernel<kDim, kWarps>;
  allow_shared("attention", kernel, kShared,
               "heads of " + std::to_string(work.shape.head_dim) + " elements are larger");
  kernel<<<dim3(static_cast<unsigned>(count * work.tiles),
                static_cast<unsigned>(work.shape.kv_heads)),
           kWarps * 32, kShared, stream>>>(work);
  check_start("attention");
}

template <int kDim>
void start(cudaStream_t stream, const Work& work, int64_t count, int64_t most_rows) {
  if (most_rows * (work.heads / work.shape.kv_heads) <= kWarpQueries) {
    start_together<kDim>(stream, work, count);
  } else {
    start<kDim, 4>(stream, work, count, most_rows);
  }
}

}  // namespace

void half_attention(cudaStream_t stream, const KvPageShape& shape,
                    const AttentionSequence* sequences, int64_t count, int64_t most_rows, int heads,
                    float scale, const float* q, Half* out) {
  if (count == 0 || most_rows == 0) return;
  const Work work{shape, sequences, 0, heads, scale * kLog2E, q, out};
  const int dim = shape.v_stride();
  if (dim <= 16) return start<16>(stream, work, count, most_rows);
  if (dim <= 32) return start<32>(stream, work, count, most_rows);
  if (dim <= 64) return start<64>(stream, work, count, most_rows);
  if (dim <= 80) return start<80>(stream, work, count, most_rows);
  if (dim <= 96) return start<96>(stream, work, count, most_rows);
  if (dim <= 128) return start<128>(stream, work, count, most_rows);
  if (dim <= 256) return start<256>(stream, work, count, most_rows);
  throw DoesNotFit("attention: heads of " + std::to_string(shape.head_dim) +
                   " elements are larger than the 256 that it is made for; use --math f32");
}

}  // namespace headrace::cuda
