// Every algorithm that a product may take gives each row the same bits in any batch, not only the
// one that is the fastest at the moment. Skipped where there is no GPU.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "engine/device/cuda/algorithms.h"
#include "engine/ops/cuda/row_ops.h"
#include "tests/ops/op_test.h"

namespace headrace {
namespace {

using Result = HalfProduct::Result;

const char* name_of(Result result) {
  return result == Result::kFloat ? "float" : result == Result::kAdded ? "added" : "relu";
}

constexpr int64_t kRows = 2048;
constexpr int64_t kMostCalls = 256;

class ProductAlgorithms : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no GPU";
    stream_.emplace();
    blas_.emplace();
    algorithms_.emplace(*blas_);
    count_.emplace(sizeof(uint32_t));
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
    return reinterpret_cast<T*>(to);
  }
  float* floats(int64_t count) { return put(random_.floats(count)); }
  Half* halves(int64_t count) {
    std::vector<Half> values;
    values.reserve(static_cast<size_t>(count));
    for (const float value : random_.floats(count)) values.push_back(to_half(value));
    return put(values);
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

  Random random_{7};
  std::optional<CudaStream> stream_;
  std::optional<CublasLt> blas_;
  std::optional<Algorithms> algorithms_;
  std::optional<DeviceMemory> count_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
};

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

}  // namespace
}  // namespace headrace
