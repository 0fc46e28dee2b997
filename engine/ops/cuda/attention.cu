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

// Where elements are stored as they are: a thread takes K of eight tokens, which lie together, for
// one of the columns, and then V of one token for eight columns.
constexpr int kTogether = 8;

struct Eight {
  float of[kTogether];
};
struct alignas(16) EightHalves {
  uint16_t bits[kTogether];
};

__device__ void put_eight(KvFormat format, std::byte* part, int index, const Eight& values) {
  if (format == KvFormat::kF16) {
    EightHalves halves;
    for (int i = 0; i < kTogether; ++i) halves.bits[i] = to_half(values.of[i]).bits;
    *reinterpret_cast<EightHalves*>(part + index * 2) = halves;
  } else {
    for (int i = 0; i < kTogether; ++i) put_plain_kv(format, part, index + i, values.of[i]);
  }
}

__global__ void store_plain_kernel(KvPageShape shape, const AttentionSequence* sequences,
                                   const float* k, const float* v) {
  const AttentionSequence sequence = sequences[blockIdx.x];
  const int dim = shape.head_dim, width = shape.kv_heads * dim;
  const int64_t thread = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.y) * blockDim.x;
  const int64_t begin = sequence.first_position, end = begin + sequence.rows;
  const auto row_of = [&](int64_t position) {
    return (sequence.first_row + position - begin) * width;
  };
  // Tokens in eights from a multiple of eight on.
  const int64_t first = begin / kTogether, eights = (end + kTogether - 1) / kTogether - first;
  for (int64_t i = thread; i < eights * width; i += threads) {
    const int column = static_cast<int>(i % width), head = column / dim, d = column % dim;
    const int64_t position = (first + i / width) * kTogether;
    const int token = static_cast<int>(position % kPageTokens);
    std::byte* const part = sequence.pages[position / kPageTokens] + shape.k_offset(head);
    if (position >= begin && position + kTogether <= end) {
      Eight eight;
      for (int t = 0; t < kTogether; ++t) eight.of[t] = k[row_of(position + t) + column];
      put_eight(shape.format, part, k_index(token, d), eight);
      continue;
    }
    for (int t = 0; t < kTogether; ++t) {
      if (position + t < begin || position + t >= end) continue;
      put_plain_kv(shape.format, part, k_index(token + t, d), k[row_of(position + t) + column]);
    }
  }
  const int parts = shape.v_stride() / kTogether;  // of a head
  for (int64_t i = thread; i < sequence.rows * shape.kv_heads * parts; i += threads) {
    const int d = static_cast<int>(i % parts) * kTogether;
    const int head = static_cast<int>(i / parts % shape.kv_heads);
    const int64_t position = begin + i / parts / shape.kv_heads;
    const float* const from = v + row_of(position) + head * dim + d;
    Eight eight;
    for (int n = 0; n < kTogether; ++n) eight.of[n] = d + n < dim ? from[n] : 0.0f;
    put_eight(shape.format, sequence.pages[position / kPageTokens] + shape.v_offset(head),
              v_index(shape, static_cast<int>(position % kPageTokens), d), eight);
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
