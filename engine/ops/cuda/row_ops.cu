#include "engine/ops/cuda/row_ops.h"

#include <algorithm>
#include <string>

#include "engine/ops/cuda/kernels.cuh"
#include "engine/ops/cuda/row_blocks.h"
#include "engine/ops/cuda/start.h"

namespace headrace::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;  // elements beyond them are taken in turns

__global__ void rms_norm_kernel(const float* x, int64_t n, const float* weight, float eps,
                                float* y) {
  GpuBlock block;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * n;
  rms_norm_row(block, x + begin, n, weight, eps, y + begin);
}

__global__ void layer_norm_kernel(const float* x, int64_t n, const float* weight, const float* bias,
                                  float eps, float* y) {
  GpuBlock block;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * n;
  layer_norm_row(block, x + begin, n, weight, bias, eps, y + begin);
}

// Calls f(i) for i < count, on all threads of the grid.
template <typename F>
__device__ void each_element(int64_t count, F f) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    f(i);
  }
}

__global__ void add_kernel(float* x, const float* y, int64_t count) {
  each_element(count, [=](int64_t i) { x[i] += y[i]; });
}

__global__ void relu_kernel(float* x, int64_t count) {
  each_element(count, [=](int64_t i) { x[i] = relu_of(x[i]); });
}

__global__ void rope_kernel(const float* cos, const float* sin, float* x, int64_t rows, int heads,
                            int half) {
  each_element(rows * heads * half, [=](int64_t i) {
    const int64_t head = i / half, row = head / heads;
    const int pair = static_cast<int>(i % half);
    rotate_pair(x + head * 2 * half, half, pair, cos[row * half + pair], sin[row * half + pair]);
  });
}

// Blocks of a grid over so many elements, none of which may be 0.
unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::min(kMostBlocks, (count + kThreads - 1) / kThreads));
}

// A kernel with a block for each row and the row in the block's memory.
template <typename Kernel, typename... Arguments>
void start_rows(const char* op, cudaStream_t stream, Kernel kernel, int64_t rows, int64_t n,
                Arguments... arguments) {
  if (rows == 0) return;
  const size_t shared = static_cast<size_t>(norm_shared_floats(n) + 8) * sizeof(float);
  allow_shared(op, kernel, shared, "rows of " + std::to_string(n) + " elements are longer");
  kernel<<<static_cast<unsigned>(rows), kThreads, shared, stream>>>(arguments...);
  check_start(op);
}

}  // namespace

void rms_norm(cudaStream_t stream, const float* x, int64_t rows, int64_t n, const float* weight,
              float eps, float* y) {
  start_rows("rms_norm", stream, rms_norm_kernel, rows, n, x, n, weight, eps, y);
}

void layer_norm(cudaStream_t stream, const float* x, int64_t rows, int64_t n, const float* weight,
                const float* bias, float eps, float* y) {
  start_rows("layer_norm", stream, layer_norm_kernel, rows, n, x, n, weight, bias, eps, y);
}

void add(cudaStream_t stream, float* x, const float* y, int64_t count) {
  if (count == 0) return;
  add_kernel<<<blocks_for(count), kThreads, 0, stream>>>(x, y, count);
  check_start("add");
}

void relu(cudaStream_t stream, float* x, int64_t count) {
  if (count == 0) return;
  relu_kernel<<<blocks_for(count), kThreads, 0, stream>>>(x, count);
  check_start("relu");
}

void apply_rope(cudaStream_t stream, const float* cos, const float* sin, float* x, int64_t rows,
                int heads, int head_dim) {
  const int64_t pairs = rows * heads * (head_dim / 2);
  if (pairs == 0) return;
  rope_kernel<<<blocks_for(pairs), kThreads, 0, stream>>>(cos, sin, x, rows, heads, head_dim / 2);
  check_start("apply_rope");
}

}  // namespace headrace::cuda
