// The kernel for a few rows through low-bit weights, on the CPU, a block at a time: the bits of the
// plain sums, whatever order its threads come in.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "tests/ops/emulated_gpu.h"

// After the instructions.
#include "engine/ops/cuda/packed_product_blocks.cuh"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"

namespace headrace {
namespace {

using cuda::PackedProduct;
using Order = PackedProduct::Order;
using Result = HalfProduct::Result;

constexpr int64_t kOutputs = 3 * kPanelRows + 1, kStride = kOutputs + 3;

// Of a panel, as the kernel is started for so many rows.
template <DType kType, int kTiles = 1>
void run(const PackedProduct& p, uint64_t seed) {
  if constexpr (kTiles < 8) {
    if (p.product.rows > kTiles * 8) return run<kType, kTiles * 2>(p, seed);
  }
  for (unsigned panel = 0; panel < (p.product.outputs + kPanelRows - 1) / kPanelRows; ++panel) {
    cuda::Block block(cuda::kPackedThreads, cuda::PackedRoom<kType, kTiles>::kBytes, seed++);
    block.run({panel}, [&](char* shared) { cuda::packed_product_block<kType, kTiles>(p, shared); });
  }
}

// A copy of values that ends where nothing may be read.
class Guarded {
 public:
  template <typename T>
  explicit Guarded(std::span<const T> values) {
    const size_t page = static_cast<size_t>(getpagesize());
    const size_t readable = (values.size_bytes() + page - 1) / page * page;
    size_ = readable + page;
    void* const memory =
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<std::byte*>(memory);
    mprotect(memory_ + readable, page, PROT_NONE);
    begin_ = memory_ + readable - values.size_bytes();
    std::memcpy(begin_, values.data(), values.size_bytes());
  }
  ~Guarded() { munmap(memory_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  const std::byte* begin() const { return begin_; }

 private:
  size_t size_;
  std::byte *memory_, *begin_;
};

template <DType kType>
class PackedCase {
 public:
  PackedCase(int64_t cols, int64_t rows)
      : weights_(random_weights(kType, kOutputs, cols, 7)), rows_(rows) {
    Random random(static_cast<uint64_t>(cols + rows));
    for (const float v : random.floats(rows * cols)) x_.push_back(to_half(v));
    bias_ = random.floats(kOutputs);
    before_ = random.floats(rows * kStride);
  }

  // Panels [first, end), and of them those from 2 on elsewhere.
  void check(PackedProduct packed, int64_t first, int64_t end, uint64_t seed) {
    SCOPED_TRACE(testing::Message() << dtype_name(kType) << ", " << rows_ << " rows of "
                                    << weights_.cols << ", panels from " << first << " to " << end);
    const std::span<const std::byte> all = weights_.panels;
    const Guarded panels(all.first(all.size() / 2)), rest(all.last(all.size() / 2)),
        x(std::span<const Half>{x_});
    packed.w = {kType, kOutputs, weights_.cols, panels.begin()};
    packed.w.split = 2;
    packed.w.rest = rest.begin();
    packed.first = first;
    packed.added = before_.data();
    HalfProduct& p = packed.product;
    p.x = reinterpret_cast<const Half*>(x.begin());
    p.rows = rows_;
    const int64_t begin = first * kPanelRows;
    p.outputs = std::min(end * kPanelRows, kOutputs) - begin;
    if (p.bias) p.bias = bias_.data() + begin;
    p.stride = kStride;
    const bool is_half = p.result == Result::kReluHalf;
    std::vector<float> floats = nans(rows_ * kStride);
    std::vector<Half> halves(static_cast<size_t>(rows_ * kStride), Half{0x7E00});
    p.y = is_half ? static_cast<void*>(halves.data()) : floats.data();
    run<kType>(packed, seed);
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t n = 0; n < kStride; ++n) {
        const auto at = static_cast<size_t>(row * kStride + n);
        const float expected = n < p.outputs ? plain(packed, row, n) : kNan;
        if (is_half) {
          ASSERT_EQ(n < p.outputs ? f32_to_f16(expected) : 0x7E00, halves[at].bits)
              << row << ", " << n;
        } else if (n < p.outputs) {
          ASSERT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(floats[at]))
              << row << ", " << n;
        } else {
          ASSERT_TRUE(std::isnan(floats[at])) << row << ", " << n;
        }
      }
    }
  }

 private:
  static float rounded(float value) { return f16_to_f32(to_half(value).bits); }

  float plain(const PackedProduct& packed, int64_t row, int64_t n) const {
    const HalfProduct& p = packed.product;
    const int64_t output = packed.first * kPanelRows + n, cols = weights_.cols;
    float sum = 0;
    for (int64_t k = 0; k < cols; ++k) {
      sum += rounded(weights_.floats[static_cast<size_t>(output * cols + k)]) *
             f16_to_f32(x_[static_cast<size_t>(row * cols + k)].bits);
    }
    sum *= p.scale;
    const float before = before_[static_cast<size_t>(row * kStride + n)];
    const float bias = p.bias ? bias_[static_cast<size_t>(output)] : 0.0f;
    switch (p.result) {
      case Result::kFloat:
        return p.bias ? sum + bias : sum;
      case Result::kAdded:
        if (!p.bias) return sum + before;
        return packed.order == Order::kAddedFirst ? sum + before + bias : sum + bias + before;
      case Result::kReluHalf:
        return std::max(0.0f, p.bias ? sum + rounded(bias) : sum);
    }
    return kNan;
  }

  Weights weights_;
  int64_t rows_;
  std::vector<Half> x_;
  std::vector<float> bias_, before_;
};

template <typename Type>
class PackedProducts : public testing::Test {};

template <DType kType>
using Of = std::integral_constant<DType, kType>;
using LowBit =
    testing::Types<Of<DType::kQ8_0>, Of<DType::kQ4_0>, Of<DType::kQ4_1>, Of<DType::kQ5_0>,
                   Of<DType::kQ5_1>, Of<DType::kQ2_K>, Of<DType::kQ3_K>, Of<DType::kQ4_K>,
                   Of<DType::kQ5_K>, Of<DType::kQ6_K>, Of<DType::kG8>, Of<DType::kG4>>;
struct Names {
  template <typename Type>
  static std::string GetName(int) {
    return dtype_name(Type::value);
  }
};
TYPED_TEST_SUITE(PackedProducts, LowBit, Names);

TYPED_TEST(PackedProducts, HaveTheBitsOfPlainSums) {
  constexpr DType kType = TypeParam::value;
  const int64_t block = panel_layout(kType).block_k;
  // One block, a tile and a piece of one, and more tiles than are on their way at once.
  const int64_t tile = std::max<int64_t>(128, block);
  for (const int64_t cols : {block, tile + block, 5 * tile + block}) {
    for (const int64_t rows : {1, 8, 11, 32, 50}) {
      PackedCase<kType> one(cols, rows);
      one.check({}, 0, 4, static_cast<uint64_t>(cols + rows));
    }
  }
}

TYPED_TEST(PackedProducts, BiasesResultsAndPanels) {
  constexpr DType kType = TypeParam::value;
  PackedCase<kType> one(256, 3);
  const float biases = 0;
  for (const Result result : {Result::kFloat, Result::kAdded, Result::kReluHalf}) {
    for (const float* bias : {static_cast<const float*>(nullptr), &biases}) {
      for (const Order order : {Order::kAddedFirst, Order::kBiasFirst}) {
        const PackedProduct p{.product = {.bias = bias, .scale = 16.0f, .result = result},
                              .order = order};
        one.check(p, 0, 4, 1);
        one.check(p, 1, 3, 2);
        one.check(p, 3, 4, 3);
      }
    }
  }
}

TYPED_TEST(PackedProducts, TheOrderOfThreadsDoesNotMatter) {
  PackedCase<TypeParam::value> one(1280, 17);
  for (uint64_t seed = 1; seed < 6; ++seed) one.check({}, 1, 2, seed * 1000);
}

}  // namespace
}  // namespace headrace
