// Products on the tensor cores by cuBLASLt, with algorithms of one class of bits per shape.
//
// cuBLASLt promises nothing about the bits of a row when the number of rows changes. Measured on
// an H100: algorithms of one id that do not split the sum over k (no split-K, no reduction) all add
// up in the same order; those of another id may add a bias and what was there in another order, or
// differ where f16 seldom shows it. So only those of the id that is best for many rows are taken;
// the fastest is checked against one of them bit by bit, and kept for its shape and number of rows
// (a power of two).
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
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
  struct Shape {
    int64_t outputs, inputs, stride;
    int count;
    uint32_t aligned;  // x, w and y
    HalfProduct::Result result;
    bool has_bias;
    auto operator<=>(const Shape&) const = default;
  };
  // Of a shape: rows, and how far apart those are that are done at once.
  using ProblemKey = std::tuple<Shape, int64_t, int64_t, int64_t, int64_t>;

  static Shape shape_of(const HalfProduct& product);
  Problem& prepared(cudaStream_t stream, const Shape& shape, const HalfProduct& product);
  std::optional<Algorithm> tune(cudaStream_t stream, const Shape& shape,
                                const HalfProduct& product);
  bool agrees(cudaStream_t stream, const HalfProduct& product, const Algorithm& alone,
              const Algorithm& algorithm);
  std::vector<Algorithm> candidates(const HalfProduct& product, uint32_t aligned,
                                    std::span<const int64_t> rows);
  const Algorithm& reference(const Shape& shape, const HalfProduct& product);
  bool run(cudaStream_t stream, const HalfProduct& product, Problem& problem,
           const Algorithm& algorithm, void* y) const;

  cublasLtHandle_t handle_ = nullptr;
  DeviceMemory workspace_, trial_, half_bias_, differing_;
  // By power of two of rows.
  std::map<std::pair<Shape, int64_t>, std::optional<Algorithm>> algorithms_;
  std::map<ProblemKey, std::unique_ptr<Problem>> problems_;
  std::map<Shape, Algorithm> references_;
  // By inputs, result and whether there is a bias.
  std::map<std::tuple<int64_t, HalfProduct::Result, bool>, int32_t> ids_;
};

}  // namespace headrace
