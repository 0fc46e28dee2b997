// Products on the tensor cores by cuBLASLt, with algorithms of one class of bits per shape.
//
// cuBLASLt promises nothing about the bits of a row when the number of rows changes. Measured on
// an H100: algorithms that do not split the sum over k (no split-K, no reduction) all add up in the
// same order. So only those are taken; each is checked against a fixed one on the first rows it
// computes, and the fastest is kept for each shape and number of rows (a power of two).
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "engine/device/cuda/memory.h"
#include "engine/device/device.h"

namespace headrace {

// One thread uses it, on one device.
class Products {
 public:
  Products();
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  // Queues it. The first product of a shape and of a new power of two of rows waits for the stream
  // and tries algorithms for some milliseconds. Throws ResourceMissing.
  void multiply(cudaStream_t stream, const HalfProduct& product);

 private:
  struct Problem;
  using Algorithm = cublasLtMatmulAlgo_t;
  // outputs, inputs, stride, alignment of x, w and y, whether relu in f16, whether there is a bias
  using Shape = std::tuple<int64_t, int64_t, int64_t, uint32_t, bool, bool>;

  static Shape shape_of(const HalfProduct& product);
  Problem& prepared(cudaStream_t stream, const Shape& shape, const HalfProduct& product);
  Algorithm tune(cudaStream_t stream, const Shape& shape, const HalfProduct& product);
  std::vector<Algorithm> candidates(const HalfProduct& product, std::span<const int64_t> rows);
  const Algorithm& reference(cudaStream_t stream, const Shape& shape, const HalfProduct& product);
  bool run(cudaStream_t stream, const HalfProduct& product, Problem& problem,
           const Algorithm& algorithm, void* y) const;

  cublasLtHandle_t handle_ = nullptr;
  DeviceMemory workspace_, trial_, half_bias_, differing_;
  std::map<std::pair<Shape, int64_t>, Algorithm> algorithms_;  // by power of two of rows
  std::map<std::pair<Shape, int64_t>, std::unique_ptr<Problem>> problems_;  // by rows
  std::map<Shape, Algorithm> references_;
};

}  // namespace headrace
