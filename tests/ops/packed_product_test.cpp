// The kernels that expand low-bit weights, and multiply a few rows with them, on the CPU, a block
// at a time: the bits of the plain definitions, whatever order threads come in.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "tests/ops/emulated_gpu.h"

// After the instructions.
#include "engine/ops/cuda/packed_product_blocks.cuh"
#include "engine/ops/cuda/unpack_blocks.cuh"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"

namespace headrace {
namespace {

using cuda::PackedWork;
using cuda::PackedWorks;
using Order = PackedWork::Order;
using Result = HalfProduct::Result;

constexpr int64_t kOutputs = 3 * kPanelRows + 1, kStride = kOutputs + 3;

// All blocks, as the kernel is started for so many rows.
template <DType kType, int kTiles = 1>
void run(const PackedWorks& works, uint64_t seed) {
  if constexpr (kTiles < 8) {
    if (works.all[0].of.product.rows > kTiles * 8) return run<kType, kTiles * 2>(works, seed);
  }
  int64_t panels = 0;
  for (int i = 0; i < works.count; ++i) panels += works.all[i].of.panels();
  for (unsigned panel = 0; panel < panels; ++panel) {
    using Shape = cuda::PackedBlock<kType, kTiles>;
    cuda::Block block(Shape::kThreads, Shape::kBytes, seed++);
    block.run({panel},
              [&](char* shared) { cuda::packed_product_block<kType, kTiles>(works, shared); });
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

// Panels [first, end) of the case's matrix.
struct Part {
  int64_t first = 0, end = 4;
  Result result = Result::kFloat;
  bool has_bias = false;
  Order order = Order::kAddedFirst;
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

  // At once; of the panels, those from 2 on lie elsewhere.
  void check(const std::vector<Part>& parts, uint64_t seed) {
    const std::span<const std::byte> all = weights_.panels;
    const Guarded panels(all.first(all.size() / 2)), rest(all.last(all.size() / 2)),
        x(std::span<const Half>{x_});
    PackedMatrix w{kType, kOutputs, weights_.cols, panels.begin()};
    w.split = 2;
    w.rest = rest.begin();
    PackedWorks works;
    std::vector<std::vector<float>> results(parts.size(), nans(rows_ * kStride));
    for (const Part& part : parts) {
      const int64_t begin = part.first * kPanelRows;
      const HalfProduct p{.x = reinterpret_cast<const Half*>(x.begin()),
                          .rows = rows_,
                          .outputs = std::min(part.end * kPanelRows, kOutputs) - begin,
                          .inputs = weights_.cols,
                          .bias = part.has_bias ? bias_.data() + begin : nullptr,
                          .scale = kScale,
                          .result = part.result,
                          .y = results[static_cast<size_t>(works.count)].data(),
                          .stride = kStride};
      works.all[works.count++] = {{p, w, part.first}, before_.data(), part.order};
    }
    run<kType>(works, seed);
    for (size_t i = 0; i < parts.size(); ++i) {
      SCOPED_TRACE(testing::Message()
                   << dtype_name(kType) << ", " << rows_ << " rows of " << weights_.cols
                   << ", panels from " << parts[i].first << " to " << parts[i].end);
      ASSERT_NO_FATAL_FAILURE(compare(works.all[i], results[i]));
    }
  }

 private:
  static constexpr float kScale = 16.0f;

  void compare(const PackedWork& work, const std::vector<float>& floats) const {
    const HalfProduct& p = work.of.product;
    const bool is_half = p.result == Result::kReluHalf;
    const auto* const halves = reinterpret_cast<const Half*>(floats.data());
    const std::vector<float> poison = nans(rows_ * kStride);
    const auto* const half_poison = reinterpret_cast<const Half*>(poison.data());
    for (int64_t row = 0; row < rows_; ++row) {
      for (int64_t n = 0; n < kStride; ++n) {
        const auto at = static_cast<size_t>(row * kStride + n);
        const float expected = n < p.outputs ? plain(work, row, n) : poison[at];
        if (is_half) {
          const uint16_t half = n < p.outputs ? f32_to_f16(expected) : half_poison[at].bits;
          ASSERT_EQ(half, halves[at].bits) << row << ", " << n;
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(floats[at]))
              << row << ", " << n;
        }
      }
    }
  }

  static float rounded(float value) { return f16_to_f32(to_half(value).bits); }

  float plain(const PackedWork& work, int64_t row, int64_t n) const {
    const HalfProduct& p = work.of.product;
    const int64_t output = work.of.first * kPanelRows + n, cols = weights_.cols;
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
        return work.order == Order::kAddedFirst ? sum + before + bias : sum + bias + before;
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
  const int64_t tile = 256;
  for (const int64_t cols : {block, tile + block, 5 * tile + block}) {
    for (const int64_t rows : {1, 8, 11, 32, 50}) {
      PackedCase<kType> one(cols, rows);
      one.check({{}}, static_cast<uint64_t>(cols + rows));
    }
  }
}

TYPED_TEST(PackedProducts, BiasesResultsAndPanels) {
  constexpr DType kType = TypeParam::value;
  PackedCase<kType> one(256, 3);
  for (const Result result : {Result::kFloat, Result::kAdded, Result::kReluHalf}) {
    for (const bool has_bias : {false, true}) {
      for (const Order order : {Order::kAddedFirst, Order::kBiasFirst}) {
        one.check({{0, 4, result, has_bias, order}}, 1);
        one.check({{1, 3, result, has_bias, order}}, 2);
        one.check({{3, 4, result, has_bias, order}}, 3);
      }
    }
  }
}

TYPED_TEST(PackedProducts, SeveralAtOnce) {
  PackedCase<TypeParam::value> one(512, 9);
  one.check({{0, 4}, {1, 2, Result::kFloat, true}, {3, 4}}, 1);
  one.check({{3, 4, Result::kAdded, true, Order::kBiasFirst}, {0, 3, Result::kReluHalf}}, 2);
}

TYPED_TEST(PackedProducts, TheOrderOfThreadsDoesNotMatter) {
  PackedCase<TypeParam::value> one(1280, 17);
  for (uint64_t seed = 1; seed < 6; ++seed) one.check({{1, 2}}, seed * 1000);
}

TYPED_TEST(PackedProducts, PanelsBecomeRows) {
  constexpr DType kType = TypeParam::value;
  const int64_t block = panel_layout(kType).block_k;
  for (const int64_t cols : {block, int64_t{256}, 512 + block}) {
    SCOPED_TRACE(testing::Message() << dtype_name(kType) << ", " << cols << " columns");
    const Weights weights = random_weights(kType, kOutputs, cols, 8);
    const Guarded panels(std::span<const std::byte>{weights.panels});
    const PackedMatrix w{kType, kOutputs, cols, panels.begin()};
    constexpr int64_t kFirst = 1;
    const auto elements = static_cast<size_t>((kOutputs - kFirst * kPanelRows) * cols);
    std::vector<Half> rows(elements + 16, Half{0xFFFF});
    for (unsigned panel = 0; panel < w.panel_count() - kFirst; ++panel) {
      for (unsigned columns = 0; columns < (cols + 255) / 256; ++columns) {
        cuda::Block one(cuda::kUnpackThreads, cuda::UnpackRoom<kType>::kBytes, panel + columns);
        one.run({panel, columns},
                [&](char* shared) { cuda::unpack_block<kType>(w, kFirst, rows.data(), shared); });
      }
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto at = static_cast<size_t>(kFirst * kPanelRows * cols) + i;
      ASSERT_EQ(i < elements ? to_half(weights.floats[at]).bits : 0xFFFF, rows[i].bits) << i;
    }
  }
}

}  // namespace
}  // namespace headrace
