// Every algorithm that a product may take gives each row the same bits in any batch, not only the
// one that is the fastest at the moment. Skipped where there is no GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "engine/device/cuda/algorithms.h"
#include "engine/ops/cuda/packed_product.h"
#include "engine/ops/cuda/row_ops.h"
#include "engine/ops/cuda/unpack.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"

namespace headrace {
namespace {

using Result = HalfProduct::Result;

const char* name_of(Result result) {
  return result == Result::kFloat ? "float" : result == Result::kAdded ? "added" : "relu";
}

constexpr int64_t kRows = 2048;
constexpr int64_t kMostCalls = 256;

class OnGpu : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU";
    stream_.emplace();
  }

  std::byte* allocate(int64_t bytes) {
    memory_.push_back(std::make_unique<DeviceMemory>(static_cast<size_t>(bytes)));
    return memory_.back()->data();
  }
  template <typename T>
  T* put(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    std::byte* const to = allocate(static_cast<int64_t>(bytes));
    check_cuda(cudaMemcpy(to, values.data(), bytes, cudaMemcpyHostToDevice), "put");
    check_cuda(cudaDeviceSynchronize(), "put");  // the stream does not wait for it
    return reinterpret_cast<T*>(to);
  }
  float* floats(int64_t count) { return put(random_.floats(count)); }
  Half* halves(int64_t count) {
    std::vector<Half> values;
    values.reserve(static_cast<size_t>(count));
    for (const float value : random_.floats(count)) values.push_back(to_half(value));
    return put(values);
  }

  Random random_{7};
  std::optional<CudaStream> stream_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
};

class ProductAlgorithms : public OnGpu {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped()) return;
    blas_.emplace();
    algorithms_.emplace(*blas_);
    count_.emplace(sizeof(uint32_t));
  }

  // The first rows of x, so many at a time, into y.
  void run(HalfProduct p, int64_t rows, const ProductProblem::Algorithm& algorithm,
           const float* before, std::byte* y) {
    ProductProblem problem(p);
    const auto row_bytes = p.outputs * static_cast<int64_t>(element_bytes(p.result));
    const Half* const x = p.x;
    for (int64_t row = 0; row < rows; row += p.rows) {
      p.x = x + row * p.inputs;
      ASSERT_TRUE(problem.run(*blas_, stream_->get(), p, algorithm, before + row * p.outputs,
                              y + row * row_bytes));
    }
  }

  uint32_t differing(const std::byte* a, const std::byte* b, int64_t bytes) {
    auto* const count = reinterpret_cast<uint32_t*>(count_->data());
    cuda::count_differing(stream_->get(), a, b, static_cast<size_t>(bytes), count);
    check_cuda(cudaStreamSynchronize(stream_->get()), "comparing");
    uint32_t result = 0;
    check_cuda(cudaMemcpy(&result, count, sizeof result, cudaMemcpyDeviceToHost), "get");
    return result;
  }

  std::optional<CublasLt> blas_;
  std::optional<Algorithms> algorithms_;
  std::optional<DeviceMemory> count_;
};

// What all comparisons here, and those of every start, rest on.
TEST_F(ProductAlgorithms, HalvesThatDifferAreCounted) {
  for (const size_t count : {size_t{1}, size_t{1000}, size_t{3000001}}) {
    const std::vector<uint16_t> same(count, 0x3C01);
    for (const size_t changed : {size_t{0}, size_t{1}, count}) {
      std::vector<uint16_t> other = same;
      for (size_t i = 0; i < changed; ++i) other[count - 1 - i] ^= i % 2 == 0 ? 1 : 0x8000;
      EXPECT_EQ(changed, differing(reinterpret_cast<std::byte*>(put(same)),
                                   reinterpret_cast<std::byte*>(put(other)),
                                   static_cast<int64_t>(count * sizeof(uint16_t))))
          << count;
    }
  }
}

class AlgorithmsOf
    : public ProductAlgorithms,
      public testing::WithParamInterface<std::tuple<int64_t, int64_t, Result, bool>> {};

std::string name_of(const testing::TestParamInfo<AlgorithmsOf::ParamType>& info) {
  const auto& [outputs, inputs, result, has_bias] = info.param;
  return std::to_string(outputs) + "x" + std::to_string(inputs) + "_" + name_of(result);
}

TEST_P(AlgorithmsOf, AllGiveARowTheSameBits) {
  const auto& [outputs, inputs, result, has_bias] = GetParam();
  const float* const before = floats(kRows * outputs);
  HalfProduct p{.x = halves(kRows * inputs),
                .rows = kRows,
                .w = halves(outputs * inputs),
                .outputs = outputs,
                .inputs = inputs,
                .result = result,
                .stride = outputs};
  if (has_bias && result == Result::kReluHalf) {
    p.bias = reinterpret_cast<const float*>(halves(outputs));
  } else if (has_bias) {
    p.bias = floats(outputs);
  }
  const auto row_bytes = outputs * static_cast<int64_t>(element_bytes(result));
  std::byte* const expected = allocate(kRows * row_bytes);
  std::byte* const got = allocate(kRows * row_bytes);
  p.y = allocate(kRows * row_bytes);
  check_cuda(
      cudaMemcpy(p.y, before, static_cast<size_t>(kRows * row_bytes), cudaMemcpyDeviceToDevice),
      "what results are added to");
  check_cuda(cudaDeviceSynchronize(), "bringing over");
  run(p, kRows, algorithms_->fitting(stream_->get(), p, 1).at(0), before, expected);

  int tried = 0;
  for (const int64_t rows : {1, 2, 4, 16, 32, 64, 128, 512, 1024, 2048}) {
    p.rows = rows;
    const int64_t compared = std::min(kRows, kMostCalls * rows);
    const auto all = algorithms_->fitting(stream_->get(), p, 1000);
    tried += static_cast<int>(all.size());
    std::printf("%4d rows: %2d tried, the fastest %s\n", static_cast<int>(rows),
                static_cast<int>(all.size()), describe(all.front()).c_str());
    for (const auto& algorithm : all) {
      check_cuda(
          cudaMemsetAsync(got, 0xff, static_cast<size_t>(compared * row_bytes), stream_->get()),
          "clearing");
      run(p, compared, algorithm, before, got);
      EXPECT_EQ(0u, differing(expected, got, compared * row_bytes))
          << rows << " rows: " << describe(algorithm);
    }
  }
  std::printf("%d algorithms tried\n", tried);
  // Of large ones, or nothing was chosen from.
  if (outputs * inputs >= int64_t{1} << 24) {
    EXPECT_GT(tried, 10);
  }
}

// Of OPT-350m and OPT-6.7B, Qwen2.5-0.5B, a tiny model, and a matrix whose rows are odd.
INSTANTIATE_TEST_SUITE_P(Products, AlgorithmsOf,
                         testing::Values(std::tuple(1024, 1024, Result::kFloat, true),
                                         std::tuple(1024, 1024, Result::kAdded, true),
                                         std::tuple(4096, 1024, Result::kReluHalf, true),
                                         std::tuple(1024, 4096, Result::kAdded, true),
                                         std::tuple(4096, 4096, Result::kAdded, true),
                                         std::tuple(16384, 4096, Result::kReluHalf, true),
                                         std::tuple(4096, 16384, Result::kAdded, true),
                                         std::tuple(896, 896, Result::kFloat, true),
                                         std::tuple(4864, 896, Result::kFloat, false),
                                         std::tuple(896, 4864, Result::kAdded, false),
                                         std::tuple(50272, 512, Result::kFloat, false),
                                         std::tuple(128, 32, Result::kReluHalf, true),
                                         std::tuple(97, 63, Result::kFloat, false)),
                         [](const auto& of) { return name_of(of); });

// The pieces of a head have the bits of the whole, whichever comes first.
TEST_F(ProductAlgorithms, PiecesHaveTheBitsOfTheWhole) {
  constexpr int64_t kOutputs = 50272, kInputs = 512, kFirst = 4096, kSome = 32;
  const Half* const w = halves(kOutputs * kInputs);
  const Half* const x = halves(kSome * kInputs);
  auto* const of_whole = reinterpret_cast<float*>(allocate(kSome * kOutputs * 4));
  auto* const of_piece = reinterpret_cast<float*>(allocate(kSome * kOutputs * 4));
  auto* const columns = reinterpret_cast<float*>(allocate(kSome * kOutputs * 4));
  check_cuda(cudaDeviceSynchronize(), "bringing over");
  for (const int64_t rows : {int64_t{1}, kSome}) {
    for (const int64_t outputs : {16384, 8192, 1120}) {
      HalfProduct whole{.x = x,
                        .rows = rows,
                        .w = w,
                        .outputs = kOutputs,
                        .inputs = kInputs,
                        .y = of_whole,
                        .stride = kOutputs};
      HalfProduct piece = whole;
      piece.w = w + kFirst * kInputs;
      piece.outputs = piece.stride = outputs;
      piece.y = of_piece;
      const auto of = [&](const HalfProduct& p) {
        const auto algorithm = algorithms_->fitting(stream_->get(), p, 1).at(0);
        EXPECT_TRUE(ProductProblem(p).run(*blas_, stream_->get(), p, algorithm, nullptr, p.y));
        return describe(algorithm);
      };
      const std::string both = "whole: " + of(whole) + "; piece: " + of(piece);
      const auto bytes = static_cast<size_t>(outputs) * sizeof(float);
      check_cuda(
          cudaMemcpy2DAsync(columns, bytes, of_whole + kFirst, kOutputs * sizeof(float), bytes,
                            static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, stream_->get()),
          "columns");
      EXPECT_EQ(0u, differing(reinterpret_cast<std::byte*>(columns),
                              reinterpret_cast<std::byte*>(of_piece), rows * outputs * 4))
          << rows << " rows, " << outputs << " outputs: " << both;
    }
  }
}

// Against sums in float64, without cuBLASLt: for tools that look at every access.
class PackedKernel : public OnGpu {};

TEST_F(PackedKernel, IsTheProduct) {
  constexpr int64_t kOutputs = 97, kInputs = 1280;
  for (const DType dtype : all_dtypes()) {
    if (dtype_info(dtype).block_elements == 1) continue;
    const Weights weights = random_weights(dtype, kOutputs, kInputs, 5);
    const PackedMatrix w{dtype, kOutputs, kInputs, put(weights.panels)};
    for (const int64_t rows : {1, 13, 32, 64}) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", " << rows << " rows");
      const std::vector<float> x = random_.floats(rows * kInputs);
      std::vector<Half> rounded(x.size());
      std::transform(x.begin(), x.end(), rounded.begin(), to_half);
      auto* const y = put(nans(rows * kOutputs));
      const HalfProduct p{.x = put(rounded),
                          .rows = rows,
                          .outputs = kOutputs,
                          .inputs = kInputs,
                          .y = y,
                          .stride = kOutputs};
      const cuda::PackedWorks works{{{{p, w}}}, 1};
      if (!cuda::multiply_packed(stream_->get(), works)) {
        std::printf("%s: not %d rows on this GPU\n", dtype_name(dtype), static_cast<int>(rows));
        continue;
      }
      check_cuda(cudaStreamSynchronize(stream_->get()), "a product");
      std::vector<float> got(static_cast<size_t>(rows * kOutputs));
      check_cuda(cudaMemcpy(got.data(), y, got.size() * sizeof(float), cudaMemcpyDeviceToHost),
                 "get");
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t n = 0; n < kOutputs; ++n) {
          double sum = 0, size = 0;
          for (int64_t k = 0; k < kInputs; ++k) {
            const double factor = static_cast<double>(
                f16_to_f32(to_half(weights.floats[static_cast<size_t>(n * kInputs + k)]).bits));
            const double term = factor * static_cast<double>(f16_to_f32(
                                             rounded[static_cast<size_t>(row * kInputs + k)].bits));
            sum += term;
            size += std::abs(term);
          }
          // Tensor cores drop bits of what is small beside the sum so far.
          ASSERT_NEAR(got[static_cast<size_t>(row * kOutputs + n)], sum, 5e-5 * size + 1e-30);
        }
      }
    }
  }
}

class PackedOf : public ProductAlgorithms,
                 public testing::WithParamInterface<std::tuple<DType, int64_t, int64_t, Result>> {
 protected:
  // In y [rows][outputs] what is added, at first.
  std::vector<float> result_of(const HalfProduct& p) {
    const auto count = static_cast<size_t>(p.rows * p.outputs);
    std::vector<float> values(count);
    if (p.result != Result::kReluHalf) {
      check_cuda(cudaMemcpy(values.data(), p.y, count * sizeof(float), cudaMemcpyDeviceToHost),
                 "get");
      return values;
    }
    std::vector<Half> halves(count);
    check_cuda(cudaMemcpy(halves.data(), p.y, count * sizeof(Half), cudaMemcpyDeviceToHost), "get");
    std::transform(halves.begin(), halves.end(), values.begin(),
                   [](Half half) { return f16_to_f32(half.bits); });
    return values;
  }
};

std::string name_of(const testing::TestParamInfo<PackedOf::ParamType>& info) {
  const auto& [dtype, outputs, inputs, result] = info.param;
  return std::string(dtype_name(dtype)) + "_" + std::to_string(outputs) + "x" +
         std::to_string(inputs) + "_" + name_of(result);
}

// The kernel that reads low-bit weights as they are computes the product, whatever its bits are,
// which are printed with what it takes.
TEST_P(PackedOf, IsTheProduct) {
  using Order = cuda::PackedWork::Order;
  const auto& [dtype, outputs, inputs, result] = GetParam();
  // Large ones have the same panels again and again.
  const int64_t repeats = outputs % 256 == 0 ? outputs / 256 : 1;
  const Weights weights = random_weights(dtype, outputs / repeats, inputs, 5);
  std::vector<std::byte> panels;
  for (int64_t i = 0; i < repeats; ++i) {
    panels.insert(panels.end(), weights.panels.begin(), weights.panels.end());
  }
  const PackedMatrix w{dtype, outputs, inputs, put(panels)};
  auto* const expanded = reinterpret_cast<Half*>(allocate(outputs * inputs * 2));
  const float* const before = floats(kFewRows * outputs);
  HalfProduct p{.x = halves(kFewRows * inputs),
                .w = expanded,
                .outputs = outputs,
                .inputs = inputs,
                .bias = floats(outputs),
                .scale = 0.5f,
                .result = result,
                .y = allocate(kFewRows * outputs * 4),
                .stride = outputs};
  auto* const half_bias = reinterpret_cast<Half*>(allocate(outputs * 2));
  const auto expand = [&] { cuda::unpack(stream_->get(), w, 0, w.panel_count(), expanded); };
  expand();
  cuda::to_half(stream_->get(), p.bias, outputs, half_bias);
  HalfProduct other = p;  // of expanded ones
  other.y = allocate(kFewRows * outputs * 4);
  if (result == Result::kReluHalf) other.bias = reinterpret_cast<const float*>(half_bias);
  for (const int64_t rows : {1, 8, 13, 32, 64}) {
    p.rows = other.rows = rows;
    const auto bytes = static_cast<size_t>(rows * outputs) * element_bytes(result);
    for (void* const y : {p.y, other.y}) {
      check_cuda(cudaMemcpyAsync(y, before, bytes, cudaMemcpyDeviceToDevice, stream_->get()),
                 "what results are added to");
    }
    const auto algorithm = algorithms_->fitting(stream_->get(), other, 1).at(0);
    const auto expands = [&](const HalfProduct& product, const void* added, void* y) {
      expand();
      return ProductProblem(product).run(*blas_, stream_->get(), product, algorithm, added, y);
    };
    const auto reads = [&, bias = p.bias](Order order) {
      return [&, order, bias](const HalfProduct& product, const void* added, void* y) {
        cuda::PackedWorks works{{{{product, w}, added, order}}, 1};
        works.all[0].of.product.bias = bias;
        works.all[0].of.product.y = y;
        return cuda::multiply_packed(stream_->get(), works);
      };
    };
    if (!reads(Order::kAddedFirst)(p, before, p.y)) {
      std::printf("%2d rows: not on this GPU\n", static_cast<int>(rows));
      continue;
    }
    ASSERT_TRUE(expands(other, before, other.y));
    check_cuda(cudaStreamSynchronize(stream_->get()), "both ways");
    const std::vector<float> got = result_of(p), expected = result_of(other);
    double squares = 0, differences = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      squares += std::pow(static_cast<double>(expected[i]), 2);
      differences += std::pow(static_cast<double>(expected[i]) - static_cast<double>(got[i]), 2);
    }
    EXPECT_LT(std::sqrt(differences / squares), 1e-3) << rows << " rows";  // NaN never passes
    const char* bits = "others";
    for (const Order order : {Order::kAddedFirst, Order::kBiasFirst}) {
      if (!algorithms_->agrees(stream_->get(), other, reads(order))) continue;
      bits = order == Order::kAddedFirst ? "the same" : "the same, the bias first";
      break;
    }
    std::printf("%2d rows: bits are %s; %.1f us, %.1f us expanded\n", static_cast<int>(rows), bits,
                1e6 * algorithms_->seconds(stream_->get(), other, reads(Order::kAddedFirst)),
                1e6 * algorithms_->seconds(stream_->get(), other, expands));
  }
}

INSTANTIATE_TEST_SUITE_P(Products, PackedOf,
                         testing::Values(std::tuple(DType::kG4, 4096, 4096, Result::kAdded),
                                         std::tuple(DType::kG4, 16384, 4096, Result::kReluHalf),
                                         std::tuple(DType::kG4, 4096, 16384, Result::kAdded),
                                         std::tuple(DType::kG8, 4096, 4096, Result::kFloat),
                                         std::tuple(DType::kQ4_K, 4864, 768, Result::kFloat),
                                         std::tuple(DType::kQ6_K, 896, 4864, Result::kAdded),
                                         std::tuple(DType::kQ8_0, 128, 896, Result::kFloat),
                                         std::tuple(DType::kQ4_0, 97, 928, Result::kReluHalf),
                                         std::tuple(DType::kQ4_1, 97, 928, Result::kAdded),
                                         std::tuple(DType::kQ5_0, 97, 928, Result::kFloat),
                                         std::tuple(DType::kQ5_1, 97, 928, Result::kFloat),
                                         std::tuple(DType::kQ2_K, 97, 1280, Result::kFloat),
                                         std::tuple(DType::kQ3_K, 97, 1280, Result::kFloat),
                                         std::tuple(DType::kQ5_K, 97, 1280, Result::kFloat)),
                         [](const auto& of) { return name_of(of); });

}  // namespace
}  // namespace headrace
