// A product as cuBLASLt has it.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/device/cuda/memory.h"
#include "engine/device/device.h"

namespace headrace {

// A handle and the memory that its algorithms work in, one after another: for one stream.
class CublasLt {
 public:
  CublasLt();
  ~CublasLt() { cublasLtDestroy(handle_); }
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  cublasLtHandle_t handle() const { return handle_; }
  const DeviceMemory& workspace() const { return workspace_; }

 private:
  DeviceMemory workspace_;
  cublasLtHandle_t handle_ = nullptr;
};

size_t element_bytes(HalfProduct::Result result);

// One of those that are done at once.
HalfProduct part_of(HalfProduct product, int i);

// What addresses and distances are multiples of: bytes, 16 at most.
struct Alignment {
  uint32_t operands, bias, result;
  auto operator<=>(const Alignment&) const = default;
};
Alignment alignment_of(const HalfProduct& product);

// Its descriptors, from shapes and distances. Throws ResourceMissing.
class ProductProblem {
 public:
  using Algorithm = cublasLtMatmulAlgo_t;

  explicit ProductProblem(const HalfProduct& product);
  ProductProblem(const ProductProblem&) = delete;
  ProductProblem& operator=(const ProductProblem&) = delete;

  // Queues product.x through product.w into y, which is added to `added` where that is the result.
  // False where the algorithm does not do this.
  bool run(const CublasLt& blas, cudaStream_t stream, const HalfProduct& product,
           const Algorithm& algorithm, const void* added, void* y);

  // Recommended ones that do not split the sum over k, the best first, from so many, for operands,
  // bias and result that are no more aligned than that.
  std::vector<Algorithm> recommended(const CublasLt& blas, const Alignment& aligned, int asked);

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value);

  const bool has_bias_;
  cublasLtMatmulDescOpaque_t operation_;
  // In cuBLASLt's order by columns: y is [outputs][rows], w transposed and x not.
  cublasLtMatrixLayoutOpaque_t w_, x_, y_;
};

int32_t id_of(const cublasLtMatmulAlgo_t& algorithm);
// "id 66, tile 12, stages 8, ...", in cuBLASLt's numbers.
std::string describe(const cublasLtMatmulAlgo_t& algorithm);

}  // namespace headrace
