#include "engine/device/cuda/products.h"

#include <bit>
#include <string>

#include "engine/device/cuda/check.h"
#include "engine/ops/cuda/row_ops.h"
#include "engine/ops/cuda/unpack.h"
#include "engine/ops/panel_elements.h"

namespace headrace {
namespace {

constexpr int64_t kMostBias = 1 << 20;
// Changes with whatever may choose another algorithm.
constexpr int kChoice = 2;

int64_t power_of_two(int64_t rows) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
}

// The product, when its weights are rows.
HalfProduct expanded(const PackedProduct& packed, const Half* rows) {
  HalfProduct p = packed.product;
  p.w = rows;
  return p;
}

}  // namespace

// cuBLASLt writes 13.1.0 as 130100.
std::string products_version() {
  const size_t version = cublasLtGetVersion();
  return "cuBLASLt " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) +
         "." + std::to_string(version % 100) + ", choice " + std::to_string(kChoice);
}

Products::Products() : algorithms_(blas_), half_bias_(kMostBias * sizeof(Half)) {}

// The bias of a result in f16 as cuBLASLt takes it.
HalfProduct Products::with_its_bias(cudaStream_t stream, const HalfProduct& product) {
  HalfProduct p = product;
  if (!p.bias || p.result != HalfProduct::Result::kReluHalf) return p;
  if (p.outputs > kMostBias) {
    throw DoesNotFit("a bias of " + std::to_string(p.outputs) + " elements is too long");
  }
  cuda::to_half(stream, p.bias, p.outputs, reinterpret_cast<Half*>(half_bias_.data()));
  p.bias = reinterpret_cast<const float*>(half_bias_.data());
  return p;
}

void Products::multiply(cudaStream_t stream, const HalfProduct& product) {
  const HalfProduct p = with_its_bias(stream, product);
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

void Products::multiply_packed(cudaStream_t stream, std::span<const PackedProduct> products,
                               Half* rows) {
  cuda::PackedWorks works;
  const auto do_works = [&] {
    if (works.count == 0) return;
    if (!cuda::multiply_packed(stream, works)) {
      for (int i = 0; i < works.count; ++i) multiply_expanded(stream, works.all[i].of, rows);
    }
    works.count = 0;
  };
  for (const PackedProduct& one : products) {
    const PackedOrder order = packed_order(stream, one, rows);
    if (!order) {
      multiply_expanded(stream, one, rows);
      continue;
    }
    const bool goes_along = works.count > 0 && works.count < cuda::PackedWorks::kMost &&
                            works.all[0].of.w.dtype == one.w.dtype;
    if (!goes_along) do_works();
    works.all[works.count++] = {one, one.product.y, *order};
  }
  do_works();
}

void Products::multiply_expanded(cudaStream_t stream, const PackedProduct& packed, Half* rows) {
  cuda::unpack(stream, packed.w, packed.first, packed.first + packed.panels(), rows);
  multiply(stream, expanded(packed, rows));
}

Products::PackedOrder Products::packed_order(cudaStream_t stream, const PackedProduct& packed,
                                             Half* rows) {
  const HalfProduct p = expanded(packed, rows);
  const Shape shape = Algorithms::shape_of(p);
  if (!is_low_bit(packed.w.dtype) || p.rows > kFewRows || shape.aligned.operands < 16) {
    return std::nullopt;
  }
  const auto key = std::tuple(shape, power_of_two(p.rows), packed.w.dtype);
  auto found = packed_.find(key);
  if (found == packed_.end()) {
    found = packed_.emplace(key, find_packed_order(stream, packed, rows)).first;
  }
  return found->second;
}

Products::PackedOrder Products::find_packed_order(cudaStream_t stream, const PackedProduct& packed,
                                                  Half* rows) {
  using Order = cuda::PackedWork::Order;
  const auto expand = [&] {
    cuda::unpack(stream, packed.w, packed.first, packed.first + packed.panels(), rows);
  };
  expand();
  const HalfProduct product = with_its_bias(stream, expanded(packed, rows));
  const std::optional<Algorithm> algorithm = prepared(stream, product).algorithm;
  const auto expands = [&](const HalfProduct& p, const void* added, void* y) {
    expand();
    return ProductProblem(p).run(blas_, stream, p, *algorithm, added, y);
  };
  const bool is_ordered = product.bias && product.result == HalfProduct::Result::kAdded;
  for (const Order order : {Order::kAddedFirst, Order::kBiasFirst}) {
    if (order == Order::kBiasFirst && !is_ordered) break;  // the same
    const auto reads = [&](const HalfProduct& p, const void* added, void* y) {
      cuda::PackedWorks works{{{{p, packed.w, packed.first}, added, order}}, 1};
      works.all[0].of.product.bias = packed.product.bias;
      works.all[0].of.product.y = y;
      return cuda::multiply_packed(stream, works);
    };
    if (!algorithms_.agrees(stream, product, reads)) continue;
    const bool is_faster =
        algorithms_.seconds(stream, product, reads) < algorithms_.seconds(stream, product, expands);
    return is_faster ? PackedOrder(order) : std::nullopt;
  }
  return std::nullopt;
}

Products::Prepared& Products::prepared(cudaStream_t stream, const HalfProduct& p) {
  const Shape shape = Algorithms::shape_of(p);
  std::unique_ptr<Prepared>& one = prepared_[{shape, p.rows, p.w_apart, p.bias_apart, p.y_apart}];
  if (one) return *one;
  const int64_t power = power_of_two(p.rows);
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
