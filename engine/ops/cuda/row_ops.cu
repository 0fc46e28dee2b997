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

// The sum of all threads' values, in an order of its own.
__device__ float block_sum(float value, float* warps) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kThreads / 32; ++w) sum += warps[w];
  __syncthreads();
  return sum;
}

// Norms for the tensor cores: a block for each row, four elements at a time, which stay in
// registers as far as kKept fours a thread go and are read again beyond. n is a multiple of 4, or
// kWide is 1.
constexpr int kKept = 8;

template <int kWide>
struct alignas(4 * kWide) Elements {
  float of[kWide];
};
template <int kWide>
struct alignas(2 * kWide) HalfElements {
  uint16_t bits[kWide];
};

template <int kWide>
__device__ Elements<kWide> elements_at(const float* x, int64_t at) {
  return *reinterpret_cast<const Elements<kWide>*>(x + at);
}

template <int kWide>
__global__ void norm_half_kernel(RowNorm norm, const float* x, Half* y) {
  __shared__ float warps[kThreads / 32];
  using E = Elements<kWide>;
  const float* const row = x + blockIdx.x * norm.n;
  Half* const out = y + blockIdx.x * norm.n;
  const auto place = [](int i) {
    return (static_cast<int64_t>(i) * kThreads + threadIdx.x) * kWide;
  };
  E kept[kKept];
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (place(i) < norm.n) kept[i] = elements_at<kWide>(row, place(i));
  }
  const auto each = [&](auto f) {  // f(where, elements)
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (place(i) < norm.n) f(place(i), kept[i]);
    }
    for (int i = kKept; place(i) < norm.n; ++i) f(place(i), elements_at<kWide>(row, place(i)));
  };
  const auto n = static_cast<float>(norm.n);
  float mean = 0.0f;
  if (norm.bias) {
    float sum = 0.0f;
    each([&](int64_t, const E& e) {
      for (int i = 0; i < kWide; ++i) sum += e.of[i];
    });
    mean = block_sum(sum, warps) / n;
  }
  float squares = 0.0f;
  each([&](int64_t, const E& e) {
    for (int i = 0; i < kWide; ++i) squares = std::fma(e.of[i] - mean, e.of[i] - mean, squares);
  });
  const float r = 1.0f / std::sqrt(block_sum(squares, warps) / n + norm.eps);
  each([&](int64_t at, const E& e) {
    const E weight = elements_at<kWide>(norm.weight, at);
    E bias{};
    if (norm.bias) bias = elements_at<kWide>(norm.bias, at);
    HalfElements<kWide> values;
    for (int i = 0; i < kWide; ++i) {
      values.bits[i] = headrace::to_half((e.of[i] - mean) * r * weight.of[i] + bias.of[i]).bits;
    }
    *reinterpret_cast<HalfElements<kWide>*>(out + at) = values;
  });
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

template <DType kType>
__global__ void look_up_kernel(PackedMatrix table, const int32_t* ids, int64_t rows, bool rounded,
                               bool added, float* x) {
  const int64_t n = table.cols;
  each_element(rows * n, [=](int64_t at) {
    const int64_t row = ids[at / n], i = at % n;
    float value = table.half_rows ? f16_at(table.panels + (row * n + i) * 2)
                                  : panel_weight<kType>(table.panel(row / kPanelRows),
                                                        static_cast<int>(row % kPanelRows), i);
    if (rounded) value = f16_to_f32(headrace::to_half(value).bits);
    x[at] = added ? x[at] + value : value;
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

using LookUp = void (*)(PackedMatrix, const int32_t*, int64_t, bool, bool, float*);
// In the order of the enum.
constexpr LookUp kLookUps[kDTypeCount] = {
    look_up_kernel<DType::kF32>,  look_up_kernel<DType::kF16>,  look_up_kernel<DType::kBF16>,
    look_up_kernel<DType::kQ8_0>, look_up_kernel<DType::kQ4_0>, look_up_kernel<DType::kQ4_1>,
    look_up_kernel<DType::kQ5_0>, look_up_kernel<DType::kQ5_1>, look_up_kernel<DType::kQ2_K>,
    look_up_kernel<DType::kQ3_K>, look_up_kernel<DType::kQ4_K>, look_up_kernel<DType::kQ5_K>,
    look_up_kernel<DType::kQ6_K>, look_up_kernel<DType::kG8>,   look_up_kernel<DType::kG4>};

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

__global__ void count_differing_kernel(const uint16_t* a, const uint16_t* b, int64_t count,
                                       uint32_t* differing) {
  each_element(count, [=](int64_t i) {
    if (a[i] != b[i]) atomicAdd(differing, 1u);
  });
}

}  // namespace

void count_differing(cudaStream_t stream, const void* a, const void* b, size_t bytes,
                     uint32_t* differing) {
  const auto count = static_cast<int64_t>(bytes / sizeof(uint16_t));
  check_cuda(cudaMemsetAsync(differing, 0, sizeof *differing, stream), "clearing");
  if (count == 0) return;
  count_differing_kernel<<<blocks_for(count), kThreads, 0, stream>>>(
      static_cast<const uint16_t*>(a), static_cast<const uint16_t*>(b), count, differing);
  check_start("comparing");
}

void normalise(cudaStream_t stream, const RowNorm& norm, const float* x, int64_t rows, float* y) {
  if (norm.bias) {
    start_rows("layer_norm", stream, layer_norm_kernel, rows, norm.n, x, norm.n, norm.weight,
               norm.bias, norm.eps, y);
  } else {
    start_rows("rms_norm", stream, rms_norm_kernel, rows, norm.n, x, norm.n, norm.weight, norm.eps,
               y);
  }
}

void normalise(cudaStream_t stream, const RowNorm& norm, const float* x, int64_t rows, Half* y) {
  if (rows == 0) return;
  const auto kernel = norm.n % 4 == 0 ? norm_half_kernel<4> : norm_half_kernel<1>;
  kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(norm, x, y);
  check_start("normalise");
}

void embed(cudaStream_t stream, const EmbeddingTables& tables, const int32_t* ids,
           const int32_t* places, int64_t rows, float* x) {
  if (rows == 0) return;
  const auto look_up = [&](const PackedMatrix& table, const int32_t* of, bool added) {
    kLookUps[static_cast<int>(table.dtype)]<<<blocks_for(rows * table.cols), kThreads, 0, stream>>>(
        table, of, rows, tables.rounded, added, x);
    check_start("embed");
  };
  look_up(tables.tokens, ids, /*added=*/false);
  if (places) look_up(tables.positions, places, /*added=*/true);
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
