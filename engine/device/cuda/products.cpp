#include "engine/device/cuda/products.h"

#include <bit>
#include <string>

#include "engine/device/cuda/check.h"
#include "engine/ops/cuda/row_ops.h"

namespace headrace {

constexpr int64_t kMostBias = 1 << 20;
// Changes with whatever may choose another algorithm.
constexpr int kChoice = 2;

// cuBLASLt writes 13.1.0 as 130100.
std::string products_version() {
  const size_t version = cublasLtGetVersion();
  return "cuBLASLt " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
         "." + std::to_string(version % 100) + ", choice " + std::to_string(kChoice);
}

Products::Products() : algorithms_(blas_), half_bias_(kMostBias * sizeof(Half)) {}

void Products::multiply(cudaStream_t stream, const HalfProduct& product) {
  HalfProduct p = product;
  if (p.bias && p.result == HalfProduct::Result::kReluHalf) {
    // The bias has the type of the result.
    if (p.outputs > kMostBias) {
      throw DoesNotFit("a bias of " + std::to_string(p.outputs) + " elements is too long");
    }
    cuda::to_half(stream, p.bias, p.outputs, reinterpret_cast<Half*>(half_bias_.data()));
    p.bias = reinterpret_cast<const float*>(half_bias_.data());
  }
  Prepared& one = prepared(stream, p);
  if (one.algorithm && one.problem.run(blas_, stream, p, *one.algorithm, p.y, p.y)) return;
  if (p.count > 1) {
    one.algorithm.reset();
    for (int i = 0; i < p.count; ++i) multiply(stream, part_of(p, i));
    return;
  }
  // What does one number of rows may not do another that is as near to the power of two.
  one.algorithm = fastest(stream, p);
  if (one.problem.run(blas_, stream, p, *one.algorithm, p.y, p.y)) return;
  throw ResourceMissing("a product of " + std::to_string(p.rows) +
                        " rows on the GPU failed: its algorithm does not fit any more");
}

Products::Prepared& Products::prepared(cudaStream_t stream, const HalfProduct& p) {
  const Shape shape = Algorithms::shape_of(p);
  std::unique_ptr<Prepared>& one = prepared_[{shape, p.rows, p.w_apart, p.bias_apart, p.y_apart}];
  if (one) return *one;
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(p.rows)));
  auto found = chosen_.find({shape, power});
  if (found == chosen_.end()) {
    found = chosen_.emplace(std::pair(shape, power), fastest(stream, p)).first;
  }
  one = std::make_unique<Prepared>(p, found->second);
  return *one;
}

std::optional<Products::Algorithm> Products::fastest(cudaStream_t stream, const HalfProduct& p) {
  const auto fitting = algorithms_.fitting(stream, p, 1);
  if (fitting.empty()) return std::nullopt;
  return fitting.front();
}

}  // namespace headrace
