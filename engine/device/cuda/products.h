// Products on the tensor cores by cuBLASLt: a row's bits depend neither on the number of rows nor
// on how a matrix is cut (algorithms.h). The fastest algorithm is kept for its shape and number of
// rows, a power of two.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "engine/device/cuda/algorithms.h"
#include "engine/device/cuda/memory.h"
#include "engine/device/cuda/product_problem.h"
#include "engine/device/device.h"

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

  Prepared& prepared(cudaStream_t stream, const HalfProduct& product);
  std::optional<Algorithm> fastest(cudaStream_t stream, const HalfProduct& product);

  CublasLt blas_;
  Algorithms algorithms_;
  DeviceMemory half_bias_;
  // By power of two of rows.
  std::map<std::pair<Shape, int64_t>, std::optional<Algorithm>> chosen_;
  std::map<ProblemKey, std::unique_ptr<Prepared>> prepared_;
};

}  // namespace headrace
