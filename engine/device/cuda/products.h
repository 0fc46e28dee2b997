// Products on the tensor cores by cuBLASLt: a row's bits depend neither on the number of rows nor
// on how a matrix is cut (algorithms.h). The fastest algorithm is kept for its shape and number of
// rows, a power of two.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>

#include "engine/device/cuda/algorithms.h"
#include "engine/device/cuda/memory.h"
#include "engine/device/cuda/product_problem.h"
#include "engine/device/device.h"
#include "engine/ops/cuda/packed_product.h"

namespace headrace {

// See DeviceModule. Throws ResourceMissing where there is no cuBLASLt.
std::string products_version();

// One thread uses it, on one device and one stream.
class Products {
 public:
  Products();

  // Queues it. The first product of a shape and of a new power of two of rows waits for the stream
  // and tries algorithms. Throws ResourceMissing.
  void multiply(cudaStream_t stream, const HalfProduct& product);
  // As Device::multiply_packed(). Few rows read the weights as they are where that has every bit of
  // the other way and takes less time: the first product of a shape, a format and a new power of
  // two of rows finds that out.
  void multiply_packed(cudaStream_t stream, std::span<const PackedProduct> products, Half* rows);

 private:
  using Algorithm = ProductProblem::Algorithm;
  using Shape = Algorithms::Shape;
  // Of a shape: rows, and how far apart those are that are done at once.
  using ProblemKey = std::tuple<Shape, int64_t, int64_t, int64_t, int64_t>;
  // Without an algorithm, products at once are done one by one.
  struct Prepared {
    ProductProblem problem;
    std::optional<Algorithm> algorithm;

    Prepared(const HalfProduct& product, const std::optional<Algorithm>& chosen)
        : problem(product), algorithm(chosen) {}
  };

  // No order: the weights are expanded.
  using PackedOrder = std::optional<cuda::PackedWork::Order>;

  HalfProduct with_its_bias(cudaStream_t stream, const HalfProduct& product);
  void multiply_expanded(cudaStream_t stream, const PackedProduct& packed, Half* rows);
  PackedOrder packed_order(cudaStream_t stream, const PackedProduct& packed, Half* rows);
  PackedOrder find_packed_order(cudaStream_t stream, const PackedProduct& packed, Half* rows);
  Prepared& prepared(cudaStream_t stream, const HalfProduct& product);
  std::optional<Algorithm> fastest(cudaStream_t stream, const HalfProduct& product);

  CublasLt blas_;
  Algorithms algorithms_;
  DeviceMemory half_bias_;
  // By power of two of rows.
  std::map<std::pair<Shape, int64_t>, std::optional<Algorithm>> chosen_;
  std::map<ProblemKey, std::unique_ptr<Prepared>> prepared_;
  std::map<std::tuple<Shape, int64_t, DType>, PackedOrder> packed_;
};

}  // namespace headrace
