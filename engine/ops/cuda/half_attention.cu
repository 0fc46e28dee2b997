#include "engine/ops/cuda/half_attention.h"

#include <string>

#include "engine/ops/cuda/start.h"
#include "engine/ops/cuda/warp_instructions.cuh"

// After the instructions.
#include "engine/ops/cuda/half_attention_blocks.cuh"

namespace headrace::cuda {
namespace {

template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 3 : 1) apart_kernel(Work work) {
  extern __shared__ uint4 memory[];
  attend_apart<kDim>(work, reinterpret_cast<char*>(memory));
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 4 : 1) together_kernel(Work work) {
  extern __shared__ uint4 memory[];
  attend_together<kDim>(work, reinterpret_cast<char*>(memory));
}

template <int kDim>
void start_together(cudaStream_t stream, const Work& work, int64_t count) {
  constexpr size_t kShared = Together<kDim>::kBytes;
  const auto kernel = together_kernel<kDim>;
  allow_shared("attention", kernel, kShared,
               "heads of " + std::to_string(work.shape.head_dim) + " elements are larger");
  kernel<<<dim3(static_cast<unsigned>(count), static_cast<unsigned>(work.shape.kv_heads)), kThreads,
           kShared, stream>>>(work);
  check_start("attention");
}

template <int kDim>
void start_apart(cudaStream_t stream, Work work, int64_t count, int64_t most_queries) {
  constexpr int64_t kQueries = kWarps * kWarpQueries;
  work.tiles = static_cast<int>((most_queries + kQueries - 1) / kQueries);
  constexpr size_t kShared = Apart<kDim>::kBytes;
  const auto kernel = apart_kernel<kDim>;
  allow_shared("attention", kernel, kShared,
               "heads of " + std::to_string(work.shape.head_dim) + " elements are larger");
  kernel<<<dim3(static_cast<unsigned>(count * work.tiles),
                static_cast<unsigned>(work.shape.kv_heads)),
           kThreads, kShared, stream>>>(work);
  check_start("attention");
}

template <int kDim>
void start(cudaStream_t stream, const Work& work, int64_t count, int64_t most_rows) {
  const int64_t queries = most_rows * (work.heads / work.shape.kv_heads);
  if (queries <= kWarpQueries) return start_together<kDim>(stream, work, count);
  start_apart<kDim>(stream, work, count, queries);
}

}  // namespace

void half_attention(cudaStream_t stream, const KvPageShape& shape,
                    const AttentionSequence* sequences, int64_t count, int64_t most_rows, int heads,
                    float scale, const float* q, Half* out) {
  if (count == 0 || most_rows == 0) return;
  if (shape.head_dim % 2 != 0) {
    throw DoesNotFit("attention: heads of " + std::to_string(shape.head_dim) +
                     " elements, an odd number; use --math f32");
  }
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
