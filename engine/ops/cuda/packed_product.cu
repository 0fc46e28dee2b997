#include "engine/ops/cuda/packed_product.h"

#include <algorithm>

#include "engine/ops/cuda/start.h"
#include "engine/ops/cuda/warp_instructions.cuh"

// After the instructions.
#include "engine/ops/cuda/packed_product_blocks.cuh"

namespace headrace::cuda {
namespace {

// Blocks of an SM at once: as an H100 has shared memory for them, and 48 registers for each of 1280
// threads.
template <typename B>
constexpr int kBlocks = std::clamp(227 * 1024 / (B::kBytes + 1024), 1, 1280 / B::kThreads);

template <DType kType, int kTiles, typename B = PackedBlock<kType, kTiles>>
__global__ void __launch_bounds__(B::kThreads, kBlocks<B>)
    packed_product_kernel(PackedWorks works) {
  extern __shared__ uint4 memory[];
  packed_product_block<kType, kTiles>(works, reinterpret_cast<char*>(memory));
}

int most_shared() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "the memory of blocks");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "the memory of blocks");
  return bytes;
}

template <DType kType, int kTiles>
bool start(cudaStream_t stream, const PackedWorks& works) {
  constexpr int kShared = PackedBlock<kType, kTiles>::kBytes;
  static const int most = most_shared();
  if (kShared > most) return false;
  const auto kernel = packed_product_kernel<kType, kTiles>;
  allow_shared("a product", kernel, kShared, "tiles of packed weights are larger");
  int64_t panels = 0;
  for (int i = 0; i < works.count; ++i) panels += works.all[i].of.panels();
  if (panels == 0) return true;
  kernel<<<static_cast<unsigned>(panels), PackedBlock<kType, kTiles>::kThreads, kShared, stream>>>(
      works);
  check_start("a product");
  return true;
}

template <DType kType>
bool start(cudaStream_t stream, const PackedWorks& works) {
  const int64_t rows = works.all[0].of.product.rows;
  if (rows <= 8) return start<kType, 1>(stream, works);
  if (rows <= 16) return start<kType, 2>(stream, works);
  if (rows <= 32) return start<kType, 4>(stream, works);
  return start<kType, 8>(stream, works);
}

using Start = bool (*)(cudaStream_t, const PackedWorks&);
// In the order of the enum.
constexpr Start kStarts[kDTypeCount] = {nullptr,
                                        nullptr,
                                        nullptr,
                                        start<DType::kQ8_0>,
                                        start<DType::kQ4_0>,
                                        start<DType::kQ4_1>,
                                        start<DType::kQ5_0>,
                                        start<DType::kQ5_1>,
                                        start<DType::kQ2_K>,
                                        start<DType::kQ3_K>,
                                        start<DType::kQ4_K>,
                                        start<DType::kQ5_K>,
                                        start<DType::kQ6_K>,
                                        start<DType::kG8>,
                                        start<DType::kG4>};

}  // namespace

bool multiply_packed(cudaStream_t stream, const PackedWorks& works) {
  if (works.count == 0 || works.all[0].of.product.rows == 0) return true;
  return kStarts[static_cast<int>(works.all[0].of.w.dtype)](stream, works);
}

}  // namespace headrace::cuda
