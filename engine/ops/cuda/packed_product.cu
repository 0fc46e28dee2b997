#include "engine/ops/cuda/packed_product.h"

#include "engine/ops/cuda/start.h"
#include "engine/ops/cuda/warp_instructions.cuh"

// After the instructions.
#include "engine/ops/cuda/packed_product_blocks.cuh"

namespace headrace::cuda {
namespace {

template <DType kType, int kTiles>
__global__ void __launch_bounds__(kPackedThreads) packed_product_kernel(PackedProduct product) {
  extern __shared__ uint4 memory[];
  packed_product_block<kType, kTiles>(product, reinterpret_cast<char*>(memory));
}

int most_shared() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "the memory of blocks");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "the memory of blocks");
  return bytes;
}

template <DType kType, int kTiles>
bool start(cudaStream_t stream, const PackedProduct& p) {
  constexpr int kShared = PackedRoom<kType, kTiles>::kBytes;
  static const int most = most_shared();
  if (kShared > most) return false;
  const auto kernel = packed_product_kernel<kType, kTiles>;
  allow_shared("a product", kernel, kShared, "tiles of packed weights are larger");
  const auto panels = static_cast<unsigned>((p.product.outputs + kPanelRows - 1) / kPanelRows);
  kernel<<<panels, kPackedThreads, kShared, stream>>>(p);
  check_start("a product");
  return true;
}

template <DType kType>
bool start(cudaStream_t stream, const PackedProduct& p) {
  if (p.product.rows <= 8) return start<kType, 1>(stream, p);
  if (p.product.rows <= 16) return start<kType, 2>(stream, p);
  if (p.product.rows <= 32) return start<kType, 4>(stream, p);
  return start<kType, 8>(stream, p);
}

}  // namespace

bool multiply_packed(cudaStream_t stream, const PackedProduct& p) {
  if (p.product.rows == 0 || p.product.outputs == 0) return true;
  switch (p.w.dtype) {
    case DType::kQ8_0:
      return start<DType::kQ8_0>(stream, p);
    case DType::kQ4_0:
      return start<DType::kQ4_0>(stream, p);
    case DType::kQ4_1:
      return start<DType::kQ4_1>(stream, p);
    case DType::kQ5_0:
      return start<DType::kQ5_0>(stream, p);
    case DType::kQ5_1:
      return start<DType::kQ5_1>(stream, p);
    case DType::kQ2_K:
      return start<DType::kQ2_K>(stream, p);
    case DType::kQ3_K:
      return start<DType::kQ3_K>(stream, p);
    case DType::kQ4_K:
      return start<DType::kQ4_K>(stream, p);
    case DType::kQ5_K:
      return start<DType::kQ5_K>(stream, p);
    case DType::kQ6_K:
      return start<DType::kQ6_K>(stream, p);
    case DType::kG8:
      return start<DType::kG8>(stream, p);
    case DType::kG4:
      return start<DType::kG4>(stream, p);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;
  }
  return false;
}

}  // namespace headrace::cuda
