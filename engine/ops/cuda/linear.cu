#include "engine/ops/cuda/linear.h"

#include "engine/ops/cuda/kernels.cuh"
#include "engine/ops/cuda/linear_blocks.h"
#include "engine/ops/cuda/start.h"

namespace headrace::cuda {
namespace {

constexpr int kThreads = 256;

// What all blocks of a product share.
struct Product {
  PackedMatrix w;
  const float* x;
  int64_t rows;
  const float* bias;
  int64_t first;  // panel of the first block
  float* y;
  bool gate;
};

template <DType kType>
__global__ void linear_kernel(Product p) {
  GpuBlock block;
  const int64_t panel = p.first + blockIdx.x, n = panel * kPanelRows;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kLinearRows;
  const int64_t rows = p.rows - row, width = p.w.rows - n;
  linear_tile<kType>(block,
                     {p.w.panel(panel), p.w.cols, p.x + row * p.w.cols,
                      static_cast<int>(rows < kLinearRows ? rows : kLinearRows),
                      static_cast<int>(width < kPanelRows ? width : kPanelRows),
                      p.bias ? p.bias + n : nullptr, p.y + row * p.w.rows + n, p.w.rows, p.gate});
}

template <DType kType>
void start(cudaStream_t stream, const Product& p, int64_t panels) {
  // Each of the three pieces is a multiple of 16 bytes.
  constexpr size_t kShared = linear_shared_floats() * sizeof(float);
  const dim3 grid(static_cast<unsigned>(panels),
                  static_cast<unsigned>((p.rows + kLinearRows - 1) / kLinearRows));
  linear_kernel<kType><<<grid, kThreads, kShared, stream>>>(p);
  check_start("linear");
}

using Start = void (*)(cudaStream_t, const Product&, int64_t);
// In the order of the enum.
constexpr Start kStarts[kDTypeCount] = {
    start<DType::kF32>,  start<DType::kF16>,  start<DType::kBF16>, start<DType::kQ8_0>,
    start<DType::kQ4_0>, start<DType::kQ4_1>, start<DType::kQ5_0>, start<DType::kQ5_1>,
    start<DType::kQ2_K>, start<DType::kQ3_K>, start<DType::kQ4_K>, start<DType::kQ5_K>,
    start<DType::kQ6_K>, start<DType::kG8>,   start<DType::kG4>};

void multiply(cudaStream_t stream, const float* x, int64_t rows, const PackedMatrix& w,
              const float* bias, int64_t first, int64_t end, float* y, bool gate) {
  if (rows == 0 || first == end) return;
  const Product product{w, x, rows, bias, first, y, gate};
  kStarts[static_cast<int>(w.dtype)](stream, product, end - first);
}

}  // namespace

void linear_panels(cudaStream_t stream, const float* x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* y) {
  multiply(stream, x, rows, w, bias, first, end, y, false);
}

void gate_panels(cudaStream_t stream, const float* x, int64_t rows, const PackedMatrix& w,
                 const float* bias, int64_t first, int64_t end, float* gate) {
  multiply(stream, x, rows, w, bias, first, end, gate, true);
}

}  // namespace headrace::cuda
