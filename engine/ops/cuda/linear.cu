#include "engine/ops/cuda/linear.h"

#include "engine/ops/cuda/kernels.cuh"
#include "engine/ops/cuda/linear_blocks.h"
#include "engine/ops/cuda/start.h"

namespace headrace::cuda {
namespace {

constexpr int kThreads = 256;

// Where the panels of a matrix are, see PackedMatrix.
struct PanelTable {
  const std::byte* panels;
  int64_t split;
  const std::byte* rest;
  size_t panel_bytes;

  __device__ const std::byte* panel(int64_t p) const {
    return p < split ? panels + static_cast<size_t>(p) * panel_bytes
                     : rest + static_cast<size_t>(p - split) * panel_bytes;
  }
};

// What all blocks of a product share.
struct Product {
  PanelTable table;
  int64_t cols, outputs;
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
  const int64_t rows = p.rows - row, width = p.outputs - n;
  linear_tile<kType>(block,
                     {p.table.panel(panel), p.cols, p.x + row * p.cols,
                      static_cast<int>(rows < kLinearRows ? rows : kLinearRows),
                      static_cast<int>(width < kPanelRows ? width : kPanelRows),
                      p.bias ? p.bias + n : nullptr, p.y + row * p.outputs + n, p.outputs, p.gate});
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
  // As PackedMatrix::panel_bytes(), which is the program's and not in this module.
  const PanelLayout layout = panel_layout(w.dtype);
  const size_t panel_bytes = static_cast<size_t>(w.cols / layout.block_k) * layout.block_bytes;
  const Product product{
      {w.panels, w.split, w.rest, panel_bytes}, w.cols, w.rows, x, rows, bias, first, y, gate};
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
