// Which of cuBLASLt's algorithms do a product so that a row's bits depend neither on the number of
// rows nor on how a matrix is cut.
//
// cuBLASLt promises nothing about bits. Measured on an H100: algorithms of one id that do not split
// the sum over k (no split-K, no reduction) all add up in the same order; those of another id may
// add a bias and what was there in another order, or differ where f16 seldom shows it. So there is
// a reference: the first algorithm that does a fixed number of rows of this matrix, of those
// recommended for a usual matrix with as many inputs, as aligned and with the same kind of result,
// and then for this one. A matrix and its pieces have the same one, unless it does not do both.
// What is used has its id, and is compared with it on this machine, bit by bit.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "engine/device/cuda/product_problem.h"

namespace headrace {

class Algorithms {
 public:
  using Algorithm = ProductProblem::Algorithm;
  // What the choice depends on, but for the number of rows.
  struct Shape {
    int64_t outputs, inputs, stride;
    int count;
    Alignment aligned;
    HalfProduct::Result result;
    bool has_bias;
    auto operator<=>(const Shape&) const = default;
  };
  static Shape shape_of(const HalfProduct& product);

  explicit Algorithms(const CublasLt& blas);

  // At most so many that may do the product, the fastest first; what is tried is written elsewhere
  // than to product.y. None where it is of several at once, and they are to be done one by one.
  // Waits for the stream. Throws ResourceMissing.
  std::vector<Algorithm> fitting(cudaStream_t stream, const HalfProduct& product, size_t most);

  // A way to do a product: queues it, with what results are added to, where they are, and where
  // they go. False where it does not do this.
  using Way = std::function<bool(const HalfProduct& product, const void* added, void* y)>;
  // Whether it gives every bit of the reference. As fitting(), of a product that has one.
  bool agrees(cudaStream_t stream, const HalfProduct& product, const Way& way);
  // What it takes, with nothing in the GPU's caches; infinity where it does not do the product.
  double seconds(cudaStream_t stream, const HalfProduct& product, const Way& way);

 private:
  struct Trial;

  Trial trial_of(cudaStream_t stream, const HalfProduct& product);
  std::vector<Algorithm>& references(const HalfProduct& product);
  std::optional<Algorithm> expect(cudaStream_t stream, const Trial& trial);
  Way way_of(cudaStream_t stream, const Trial& trial, HalfProduct product, int64_t at_once,
             const Algorithm& algorithm) const;
  std::vector<Algorithm> by_time(cudaStream_t stream, const Trial& trial, int32_t id) const;
  double seconds(cudaStream_t stream, const Trial& trial, const Way& way, double longest) const;
  bool fill(const Trial& trial, HalfProduct product, int64_t at_once, const Way& way, std::byte* y,
            int part) const;
  bool agrees(cudaStream_t stream, const Trial& trial, const Way& way);
  bool agrees(cudaStream_t stream, const Trial& trial, const Algorithm& algorithm);

  const CublasLt& blas_;
  DeviceMemory memory_, differing_;
  // By the shape of one product. Once one of them has done it, none of another id.
  std::map<Shape, std::vector<Algorithm>> references_;
};

}  // namespace headrace
