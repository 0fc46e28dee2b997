#include "engine/ops/cuda/attention.h"

#include <algorithm>

#include "engine/ops/cuda/attention_blocks.h"
#include "engine/ops/cuda/kernels.cuh"
#include "engine/ops/cuda/start.h"

namespace headrace::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMostPlainBlocks = 1024;
constexpr int64_t kMostBlocks = 64;  // of a sequence, when it is stored; pieces beyond take turns

__global__ void store_kernel(KvPageShape shape, const AttentionSequence* sequences, const float* k,
                             const float* v) {
  const AttentionSequence sequence = sequences[blockIdx.x];
  const int64_t pieces = store_pieces(shape, sequence);
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < pieces;
       i += stride) {
    store_piece(shape, sequence, i, k, v);
  }
}

// One element on each thread, where elements are stored as they are.
__global__ void store_plain_kernel(KvPageShape shape, const AttentionSequence* sequences,
                                   const float* k, const float* v) {
  const AttentionSequence sequence = sequences[blockIdx.x];
  const int width = shape.kv_heads * shape.head_dim;
  const int64_t count = sequence.rows * width;
  const int64_t stride = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const int64_t row = i / width, position = sequence.first_position + row;
    const int of_row = static_cast<int>(i % width), head = of_row / shape.head_dim,
              d = of_row % shape.head_dim, token = static_cast<int>(position % kPageTokens);
    std::byte* const page = sequence.pages[position / kPageTokens];
    const int64_t at = (sequence.first_row + row) * width + of_row;
    std::byte* const v_part = page + shape.v_offset(head);
    put_plain_kv(shape.format, page + shape.k_offset(head), k_index(token, d), k[at]);
    put_plain_kv(shape.format, v_part, v_index(shape, token, d), v[at]);
    if (d + 1 < shape.head_dim) continue;
    for (int past = shape.head_dim; past < shape.v_stride(); ++past) {
      put_plain_kv(shape.format, v_part, v_index(shape, token, past), 0.0f);
    }
  }
}

__global__ void attention_kernel(KvPageShape shape, const AttentionSequence* sequences,
                                 int64_t tiles, int heads, float scale, const float* q,
                                 float* out) {
  const AttentionSequence sequence = sequences[blockIdx.x / tiles];
  const int64_t tile = blockIdx.x % tiles;
  if (tile >= query_tiles(sequence.rows, heads / shape.kv_heads)) return;
  GpuBlock block;
  const auto kv_head = static_cast<int>(blockIdx.y);
  attend_tile(block, shape, scale, sequence.pages, kv_head,
              query_tile(shape, sequence, tile, kv_head, heads, q, out));
}

}  // namespace

void store_kv(cudaStream_t stream, const KvPageShape& shape, const AttentionSequence* sequences,
              int64_t count, int64_t most_rows, const float* k, const float* v) {
  if (count == 0 || most_rows == 0) return;
  if (!shape.is_quantised()) {
    const int64_t elements = most_rows * shape.kv_heads * shape.head_dim;
    const auto blocks =
        static_cast<unsigned>(std::min(kMostPlainBlocks, (elements + kThreads - 1) / kThreads));
    store_plain_kernel<<<dim3(static_cast<unsigned>(count), blocks), kThreads, 0, stream>>>(
        shape, sequences, k, v);
    check_start("store_kv");
    return;
  }
  const int64_t pieces = most_rows * shape.kv_heads * shape.groups() * 2;
  const auto blocks =
      static_cast<unsigned>(std::min(kMostBlocks, (pieces + kThreads - 1) / kThreads));
  store_kernel<<<dim3(static_cast<unsigned>(count), blocks), kThreads, 0, stream>>>(
      shape, sequences, k, v);
  check_start("store_kv");
}

void attention(cudaStream_t stream, const KvPageShape& shape, const AttentionSequence* sequences,
               int64_t count, int64_t most_rows, int heads, float scale, const float* q,
               float* out) {
  if (count == 0 || most_rows == 0) return;
  const int64_t tiles = query_tiles(most_rows, heads / shape.kv_heads);
  // Each of the eight pieces is rounded up to 16 bytes.
  const auto shared =
      static_cast<size_t>(attention_shared_floats(shape.head_dim) + 8 * 4) * sizeof(float);
  allow_shared("attention", attention_kernel, shared,
               "heads of " + std::to_string(shape.head_dim) + " elements are larger");
  attention_kernel<<<dim3(static_cast<unsigned>(count * tiles),
                          static_cast<unsigned>(shape.kv_heads)),
                     kThreads, shared, stream>>>(shape, sequences, tiles, heads, scale, q, out);
  check_start("attention");
}

}  // namespace headrace::cuda
