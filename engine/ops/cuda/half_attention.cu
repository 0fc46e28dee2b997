#include "engine/ops/cuda/half_attention.h"

#include <string>

#include "engine/ops/cuda/start.h"

namespace headrace::cuda {
namespace {

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

__device__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void copy_16(char* to, const std::byte* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
}

// Four 8 x 8 matrices whose rows the lanes point to, turned.
__device__ void load_turned(uint32_t (&to)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

// The same, not turned.
__device__ void load_straight(uint32_t (&to)[4], const char* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

// c += a * b, 16 x 8 from 16 x 16 and 16 x 8.
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ uint32_t pack(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Tokens [64 * tile, ...) of which those before `end` are wanted; what is missing of V is zero.
template <int kDim>
__device__ void load_tile(const KvPageShape& shape, const AttentionSequence& sequence, int kv_head,
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
    const std::byte* const memory = sequence.pages[number];
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
__device__ void weigh_page(float (&low)[4], float (&high)[4], int r, float most, float keep,
                           float& sum) {
  sum *= keep;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float& weight = (i < 2 ? low : high)[2 * r + i % 2];
    weight = __half2float(__float2half_rn(exp2f(weight - most)));
    sum += weight;
  }
}

__device__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}

// Of the weights of a query, from those of its four lanes.
__device__ float row_sum(const float (&sums)[kTilePages]) {
  float sum = sums[0];
#pragma unroll
  for (int page = 1; page < kTilePages; ++page) sum += sums[page];
  sum += __shfl_xor_sync(~0u, sum, 1);
  return sum + __shfl_xor_sync(~0u, sum, 2);
}

// The softmax step of a tile; s becomes the weights.
template <int kDim>
__device__ void weigh(Queries<kDim>& w, int64_t first_token, float (&s)[kTileTokens / 8][4]) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = kNothing;
#pragma unroll
    for (int n = 0; n < kTileTokens / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = s[n][2 * r + i];
        if (first_token + n * 8 + lane % 4 * 2 + i > w.position[r]) score = -INFINITY;
        most = fmaxf(most, score);
      }
    }
    most = fmaxf(row_max(most), w.max[r]);
    const float keep = exp2f(w.max[r] - most);
    w.max[r] = most;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      w.o[n][2 * r] *= keep;
      w.o[n][2 * r + 1] *= keep;
    }
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      weigh_page(s[2 * page], s[2 * page + 1], r, most, keep, w.sum[r][page]);
    }
  }
}

template <int kDim>
__device__ void attend_tile(const char* stage, int64_t first_token, Queries<kDim>& w) {
  using L = Layout<kDim>;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int row = lane % 8 + lane / 8 % 2 * 8, half = lane / 16;
  float s[kTileTokens / 8][4] = {};
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t k[4];
      load_turned(k, stage + L::k(page, step * 16 + row, half));
      multiply_add(s[2 * page], w.q[step], k[0], k[1]);
      multiply_add(s[2 * page + 1], w.q[step], k[2], k[3]);
    }
  }
  weigh(w, first_token, s);
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
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

// A block for kWarps tiles of queries of one sequence and KV head, which share what they read.
template <int kDim, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) half_attention_kernel(Work work) {
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
  load_queries(work, sequence, kv_head, mine, w);
  load_tile<kDim>(shape, sequence, kv_head, 0, end, shared);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    char* const stage = shared + tile % kStages * Layout<kDim>::kStage;
    if (tile + 1 < tiles) {
      load_tile<kDim>(shape, sequence, kv_head, tile + 1, end,
                      shared + (tile + 1) % kStages * Layout<kDim>::kStage);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
      __syncthreads();
      // What no query sees may not be a number.
      clear_tokens<kDim>(shape, static_cast<int>(end - tile * kTileTokens), stage);
    }
    __syncthreads();
    if (works) attend_tile(stage, tile * kTileTokens, w);
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
  load_tile<kDim>(shape, sequence, kv_head, 0, end, shared);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    char* const stage = shared + tile % kStages * L::kStage;
    if (tile + 1 < tiles) {
      load_tile<kDim>(shape, sequence, kv_head, tile + 1, end,
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
      const float keep = exp2f(w.max[r] - most);
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
