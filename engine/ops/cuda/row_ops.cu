#include "engine/ops/cuda/row_ops.h"

#include <algorithm>
#include <string>

#include "engine/ops/cuda/kernels.cuh"
#include "engine/ops/cuda/row_blocks.h"
#include "engine/ops/cuda/start.h"
#include "engine/ops/panel_elements.h"

namespace headrace::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 4096;  // elements beyond them are taken in turns

template <typename Out>
__global__ void rms_norm_kernel(const float* x, int64_t n, const float* weight, float eps, Out* y) {
  GpuBlock block;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * n;
  rms_norm_row(block, x + begin, n, weight, eps, y + begin);
}

template <typename Out>
__global__ void layer_norm_kernel(const float* x, int64_t n, const float* weight, const float* bias,
                                  float eps, Out* y) {
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

__global__ void to_half_kernel(const float* x, int64_t count, Half* y) {
  each_element(count, [=](int64_t i) { y[i] = headrace::to_half(x[i]); });
}

__global__ void silu_multiply_kernel(const float* gate, const float* up, int64_t rows,
                                     int64_t width, int64_t stride, float scale, Half* y) {
  each_element(rows * width, [=](int64_t i) {
    const int64_t at = i / width * stride + i % width;
    y[at] = headrace::to_half(scale * silu_multiply_of(gate[at], up[i]));
  });
}

__device__ float element(const PackedMatrix& rows, int64_t row, int64_t i) {
  return f16_at(rows.panels + (row * rows.cols + i) * 2);
}

__global__ void embed_kernel(PackedMatrix tokens, PackedMatrix positions, const int32_t* ids,
                             const int32_t* places, int64_t rows, float* x) {
  const int64_t n = tokens.cols;
  each_element(rows * n, [=](int64_t at) {
    const int64_t row = at / n, i = at % n;
    const float token = element(tokens, ids[row], i);
    x[at] = places ? token + element(positions, places[row], i) : token;
  });
}

constexpr int kBestThreads = 512;

// A block for each row.
__global__ void find_best_kernel(const float* logits, int64_t width, int64_t id, BestToken* best) {
  __shared__ float values[kBestThreads];
  __shared__ int64_t places[kBestThreads];
  const float* const row = logits + blockIdx.x * width;
  const auto t = static_cast<int>(threadIdx.x);
  float value = -INFINITY;
  int64_t place = width;
  bool has_nan = false;
  for (int64_t i = t; i < width; i += kBestThreads) {
    has_nan |= isnan(row[i]);
    if (row[i] > value) {
      value = row[i];
      place = i;
    }
  }
  values[t] = value;
  places[t] = place;
  has_nan = __syncthreads_or(has_nan) != 0;
  for (int half = kBestThreads / 2; half > 0; half /= 2) {
    if (t < half) {
      const int other = t + half;
      if (values[other] > values[t] || (values[other] == values[t] && places[other] < places[t])) {
        values[t] = values[other];
        places[t] = places[other];
      }
    }
    __syncthreads();
  }
  if (t != 0) return;
  BestToken& so_far = best[blockIdx.x];
  if (values[0] > so_far.logit) {
    so_far.logit = values[0];
    so_far.token = static_cast<int32_t>(id + places[0]);
  }
  so_far.has_nan |= has_nan;
}

constexpr int kUnpackColumns = 64;

template <DType kType>
__global__ void unpack_kernel(PackedMatrix w, int64_t first, Half* out) {
  __shared__ Half tile[kPanelRows][kUnpackColumns + 2];
  const std::byte* const panel = w.panel(first + blockIdx.x);
  const int64_t k0 = static_cast<int64_t>(blockIdx.y) * kUnpackColumns, left = w.cols - k0;
  const int columns = static_cast<int>(left < kUnpackColumns ? left : kUnpackColumns);
  for (int i = static_cast<int>(threadIdx.x); i < columns * kPanelRows; i += kThreads) {
    const int row = i % kPanelRows, k = i / kPanelRows;
    tile[row][k] = headrace::to_half(panel_weight<kType>(panel, row, k0 + k));
  }
  __syncthreads();
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kPanelRows,
                rows = w.rows - first * kPanelRows - row0;
  for (int i = static_cast<int>(threadIdx.x); i < kPanelRows * kUnpackColumns; i += kThreads) {
    const int row = i / kUnpackColumns, k = i % kUnpackColumns;
    if (row < rows && k < columns) out[(row0 + row) * w.cols + k0 + k] = tile[row][k];
  }
}

using Unpack = void (*)(PackedMatrix, int64_t, Half*);
// In the order of the enum.
constexpr Unpack kUnpacks[kDTypeCount] = {
    unpack_kernel<DType::kF32>,  unpack_kernel<DType::kF16>,  unpack_kernel<DType::kBF16>,
    unpack_kernel<DType::kQ8_0>, unpack_kernel<DType::kQ4_0>, unpack_kernel<DType::kQ4_1>,
    unpack_kernel<DType::kQ5_0>, unpack_kernel<DType::kQ5_1>, unpack_kernel<DType::kQ2_K>,
    unpack_kernel<DType::kQ3_K>, unpack_kernel<DType::kQ4_K>, unpack_kernel<DType::kQ5_K>,
    unpack_kernel<DType::kQ6_K>, unpack_kernel<DType::kG8>,   unpack_kernel<DType::kG4>};

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

template <typename Out>
void normalise_rows(cudaStream_t stream, const RowNorm& norm, const float* x, int64_t rows,
                    Out* y) {
  if (norm.bias) {
    start_rows("layer_norm", stream, layer_norm_kernel<Out>, rows, norm.n, x, norm.n, norm.weight,
               norm.bias, norm.eps, y);
  } else {
    start_rows("rms_norm", stream, rms_norm_kernel<Out>, rows, norm.n, x, norm.n, norm.weight,
               norm.eps, y);
  }
}

}  // namespace

void normalise(cudaStream_t stream, const RowNorm& norm, const float* x, int64_t rows, float* y) {
  normalise_rows(stream, norm, x, rows, y);
}

void normalise(cudaStream_t stream, const RowNorm& norm, const float* x, int64_t rows, Half* y) {
  normalise_rows(stream, norm, x, rows, y);
}

void embed(cudaStream_t stream, const EmbeddingTables& tables, const int32_t* ids,
           const int32_t* places, int64_t rows, float* x) {
  if (rows == 0) return;
  embed_kernel<<<blocks_for(rows * tables.tokens.cols), kThreads, 0, stream>>>(
      tables.tokens, tables.positions, ids, places, rows, x);
  check_start("embed");
}

void find_best(cudaStream_t stream, const float* logits, int64_t rows, int64_t width, int64_t id,
               BestToken* best) {
  if (rows == 0 || width == 0) return;
  find_best_kernel<<<static_cast<unsigned>(rows), kBestThreads, 0, stream>>>(logits, width, id,
                                                                             best);
  check_start("find_best");
}

void to_half(cudaStream_t stream, const float* x, int64_t count, Half* y) {
  if (count == 0) return;
  to_half_kernel<<<blocks_for(count), kThreads, 0, stream>>>(x, count, y);
  check_start("to_half");
}

void silu_multiply(cudaStream_t stream, const float* gate, const float* up, int64_t rows,
                   int64_t width, int64_t stride, float scale, Half* y) {
  if (rows * width == 0) return;
  silu_multiply_kernel<<<blocks_for(rows * width), kThreads, 0, stream>>>(gate, up, rows, width,
                                                                          stride, scale, y);
  check_start("silu_multiply");
}

void unpack(cudaStream_t stream, const PackedMatrix& w, int64_t first, int64_t end, Half* rows) {
  if (first == end) return;
  const dim3 grid(static_cast<unsigned>(end - first),
                  static_cast<unsigned>((w.cols + kUnpackColumns - 1) / kUnpackColumns));
  kUnpacks[static_cast<int>(w.dtype)]<<<grid, kThreads, 0, stream>>>(w, first, rows);
  check_start("unpack");
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
