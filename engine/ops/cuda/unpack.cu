#include "engine/ops/cuda/unpack.h"

#include "engine/ops/cuda/start.h"
#include "engine/ops/cuda/warp_instructions.cuh"

// After the instructions.
#include "engine/ops/cuda/unpack_blocks.cuh"

namespace headrace::cuda {
namespace {

constexpr int kThreads = kUnpackThreads;
constexpr int kPlainColumns = 64;  // of a block

template <DType kType>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(PackedMatrix w, int64_t first, Half* out) {
  __shared__ uint4 memory[UnpackRoom<kType>::kBytes / sizeof(uint4)];
  unpack_block<kType>(w, first, out, reinterpret_cast<char*>(memory));
}

using PlainTile = Half[kPanelRows][kPlainColumns + 2];

// Columns of a panel, two at a time where rows have an even number.
__device__ void write_tile(const PackedMatrix& w, int64_t first, const PlainTile& tile, int columns,
                           Half* out) {
  const int64_t k0 = static_cast<int64_t>(blockIdx.y) * kPlainColumns;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kPanelRows,
                rows = w.rows - first * kPanelRows - row0;
  if (w.cols % 2 == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < kPanelRows * kPlainColumns / 2; i += kThreads) {
      const int row = i / (kPlainColumns / 2), k = i % (kPlainColumns / 2) * 2;
      if (row >= rows || k >= columns) continue;
      *reinterpret_cast<uint32_t*>(out + (row0 + row) * w.cols + k0 + k) =
          *reinterpret_cast<const uint32_t*>(&tile[row][k]);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kPanelRows * kPlainColumns; i += kThreads) {
    const int row = i / kPlainColumns, k = i % kPlainColumns;
    if (row < rows && k < columns) out[(row0 + row) * w.cols + k0 + k] = tile[row][k];
  }
}

__device__ int plain_columns(const PackedMatrix& w) {
  const int64_t left = w.cols - static_cast<int64_t>(blockIdx.y) * kPlainColumns;
  return static_cast<int>(left < kPlainColumns ? left : kPlainColumns);
}

__global__ void unpack_f32_kernel(PackedMatrix w, int64_t first, Half* out) {
  __shared__ alignas(uint32_t) PlainTile tile;
  const std::byte* const panel = w.panel(first + blockIdx.x);
  const int64_t k0 = static_cast<int64_t>(blockIdx.y) * kPlainColumns;
  const int columns = plain_columns(w);
  for (int i = static_cast<int>(threadIdx.x); i < columns * kPanelRows; i += kThreads) {
    const int row = i % kPanelRows, k = i / kPanelRows;
    tile[row][k] = headrace::to_half(panel_weight<DType::kF32>(panel, row, k0 + k));
  }
  __syncthreads();
  write_tile(w, first, tile, columns, out);
}

// F16, BF16: eight rows at a time.
template <DType kType>
__global__ void unpack_16_bits_kernel(PackedMatrix w, int64_t first, Half* out) {
  __shared__ alignas(uint32_t) PlainTile tile;
  const int64_t k0 = static_cast<int64_t>(blockIdx.y) * kPlainColumns;
  const int columns = plain_columns(w);
  const std::byte* const panel = w.panel(first + blockIdx.x) + k0 * kPanelRows * 2;
  for (int i = static_cast<int>(threadIdx.x); i < columns * 4; i += kThreads) {
    const int k = i / 4, row = i % 4 * 8;
    const uint4 eight = *reinterpret_cast<const uint4*>(panel + k * kPanelRows * 2 + row * 2);
    const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const auto bits = static_cast<uint16_t>(pairs[n / 2] >> (n % 2 * 16));
      tile[row + n][k] = kType == DType::kF16 ? Half{bits} : headrace::to_half(bf16_to_f32(bits));
    }
  }
  __syncthreads();
  write_tile(w, first, tile, columns, out);
}

using Unpack = void (*)(PackedMatrix, int64_t, Half*);
// In the order of the enum.
constexpr Unpack kUnpacks[kDTypeCount] = {unpack_f32_kernel,
                                          unpack_16_bits_kernel<DType::kF16>,
                                          unpack_16_bits_kernel<DType::kBF16>,
                                          unpack_kernel<DType::kQ8_0>,
                                          unpack_kernel<DType::kQ4_0>,
                                          unpack_kernel<DType::kQ4_1>,
                                          unpack_kernel<DType::kQ5_0>,
                                          unpack_kernel<DType::kQ5_1>,
                                          unpack_kernel<DType::kQ2_K>,
                                          unpack_kernel<DType::kQ3_K>,
                                          unpack_kernel<DType::kQ4_K>,
                                          unpack_kernel<DType::kQ5_K>,
                                          unpack_kernel<DType::kQ6_K>,
                                          unpack_kernel<DType::kG8>,
                                          unpack_kernel<DType::kG4>};

}  // namespace

void unpack(cudaStream_t stream, const PackedMatrix& w, int64_t first, int64_t end, Half* rows) {
  if (first == end) return;
  const int64_t columns = is_low_bit(w.dtype) ? UnpackRoom<DType::kG4>::kColumns : kPlainColumns;
  const dim3 grid(static_cast<unsigned>(end - first),
                  static_cast<unsigned>((w.cols + columns - 1) / columns));
  kUnpacks[static_cast<int>(w.dtype)]<<<grid, kThreads, 0, stream>>>(w, first, rows);
  check_start("unpack");
}

}  // namespace headrace::cuda
