// Linear layers over packed weights of every format, on every target, for odd shapes and numbers of
// threads: the bits of dequantisation followed by the plain loop.

#include "engine/ops/linear.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

constexpr int64_t kMostOutputs = 97, kMostRows = 300;
constexpr int64_t kOutputs[] = {1, 31, 32, 33, 97};
constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 13, 14, 15, 16, 29, 64, 257, 300};

// One matrix with everything to multiply it by. Any y[m][n] depends on row m of x and row n of w
// only, so the expected values of the largest product hold those of all smaller ones.
struct Case {
  Case(DType dtype, int64_t cols, int64_t rows)
      : w(random_weights(dtype, kMostOutputs, cols, 21)),
        x(Random(22).floats(rows * cols)),
        bias(Random(23).floats(kMostOutputs)),
        without_bias(nans(rows * kMostOutputs)),
        with_bias(without_bias) {
    for (const int64_t outputs : kOutputs) first_outputs[outputs] = w.pack_first(outputs);
    for (size_t i = 5; i < x.size(); i += 19) x[i] = i % 2 ? -0.0f : 1e-40f;
    const float* floats = w.floats.data();
    reference::linear(x.data(), rows, cols, floats, kMostOutputs, nullptr, without_bias.data());
    reference::linear(x.data(), rows, cols, floats, kMostOutputs, bias.data(), with_bias.data());
  }

  // The expected y of the product of `rows` rows of x from `first` on with the first `outputs` of
  // w.
  std::vector<float> expected(int64_t first, int64_t rows, int64_t outputs, bool biased) const {
    std::vector<float> y;
    for (int64_t m = first; m < first + rows; ++m) {
      const float* row = (biased ? with_bias : without_bias).data() + m * kMostOutputs;
      y.insert(y.end(), row, row + outputs);
    }
    return y;
  }

  Weights w;
  std::map<int64_t, std::vector<std::byte>> first_outputs;  // the first rows of w, packed
  std::vector<float> x, bias, without_bias, with_bias;
};

class Linear : public testing::TestWithParam<std::tuple<DType, Target>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }

  void check(const Case& c, int64_t first, int64_t rows, int64_t outputs, bool biased) {
    const PackedMatrix w{c.w.dtype, outputs, c.w.cols, c.first_outputs.at(outputs).data()};
    const std::vector<float> expected = c.expected(first, rows, outputs, biased);
    for (ThreadPool* pool : {&one_, &two_, &three_}) {
      const Cpu cpu{*pool, kernels(std::get<1>(GetParam()))};
      std::vector<float> y = nans(rows * outputs + 1);
      linear(cpu, c.x.data() + first * c.w.cols, rows, w, biased ? c.bias.data() : nullptr,
             y.data());
      ASSERT_TRUE(std::isnan(y.back())) << "wrote past the end";
      y.pop_back();
      ASSERT_TRUE(same_bits(expected, y))
          << outputs << " x " << c.w.cols << ", rows " << first << "+" << rows << ", "
          << pool->threads() << " threads" << (biased ? ", bias" : "");
    }
  }

  // The product as the second half of a gated MLP, panels in two parts.
  void check_gate(const Case& c, int64_t rows, int64_t outputs, bool biased) {
    const PackedMatrix w{c.w.dtype, outputs, c.w.cols, c.first_outputs.at(outputs).data()};
    const std::vector<float> gate = Random(24).floats(rows * outputs, 3.0f);
    std::vector<float> expected = c.expected(0, rows, outputs, biased);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] *= reference::silu(gate[i]);
    for (ThreadPool* pool : {&one_, &three_}) {
      const Cpu cpu{*pool, kernels(std::get<1>(GetParam()))};
      std::vector<float> y = gate;
      const float* bias = biased ? c.bias.data() : nullptr;
      const int64_t panels = w.panel_count(), half = panels / 2;
      gate_panels(cpu, c.x.data(), rows, w, bias, 0, half, y.data());
      gate_panels(cpu, c.x.data(), rows, w, bias, half, panels, y.data());
      ASSERT_TRUE(same_bits(expected, y)) << outputs << " outputs, " << rows << " rows";
    }
  }

 private:
  ThreadPool one_{1, 0}, two_{2, 0}, three_{3, 0};
};

// All heights, widths and biases over a few short inner dimensions.
TEST_P(Linear, ShortRows) {
  std::vector<int64_t> all_cols;
  const int block = dtype_info(dtype()).block_elements;
  if (block == 1) all_cols = {1, 7, 33, 129};
  if (block == 32) all_cols = {32, 64, 160};
  if (block == 64) all_cols = {64, 192};
  if (block == 256) all_cols = {256};
  for (const int64_t cols : all_cols) {
    const Case c(dtype(), cols, kMostRows);
    for (const int64_t outputs : kOutputs) {
      for (const int64_t rows : kRows) {
        for (const bool biased : {false, true}) {
          ASSERT_NO_FATAL_FAILURE(check(c, 0, rows, outputs, biased));
        }
      }
    }
  }
}

TEST_P(Linear, SecondHalfOfAGatedMlp) {
  const Case c(dtype(), dtype_info(dtype()).block_elements == 1 ? 65 : 256, kMostRows);
  for (const int64_t outputs : kOutputs) {
    for (const int64_t rows : {1, 7, 257}) {
      ASSERT_NO_FATAL_FAILURE(check_gate(c, rows, outputs, rows != 7));
    }
  }
}

// Real inner dimensions, longer than a tile of columns, over fewer shapes.
TEST_P(Linear, LongRows) {
  const int block = dtype_info(dtype()).block_elements;
  if (block == 256) {
    for (const int64_t cols : {512, 768}) {
      const Case c(dtype(), cols, kMostRows);
      for (const int64_t rows : kRows) {
        ASSERT_NO_FATAL_FAILURE(check(c, 0, rows, 33, rows % 2 == 0));
      }
      ASSERT_NO_FATAL_FAILURE(check(c, 0, 29, 97, true));
    }
  } else {
    const Case c(dtype(), 4864, 29);
    for (const int64_t rows : {1, 2, 6, 7, 14, 15, 29}) {
      ASSERT_NO_FATAL_FAILURE(check(c, 0, rows, 33, rows % 2 == 0));
    }
    for (const int64_t outputs : kOutputs) ASSERT_NO_FATAL_FAILURE(check(c, 0, 3, outputs, false));
  }
}

// More than a core's second cache keeps: columns in blocks, several panels at a time, the last row
// of 513 by itself.
TEST_P(Linear, WideBlocksOfRows) {
  const bool has_blocks = dtype_info(dtype()).block_elements > 1;
  const Case c(dtype(), has_blocks ? 1024 : 801, 513);
  ASSERT_NO_FATAL_FAILURE(check(c, 0, 513, 97, true));
  ASSERT_NO_FATAL_FAILURE(check(c, 0, 200, 97, false));
}

// A row's result is the same wherever the row stands in the batch: alone, first, last, in between.
TEST_P(Linear, RowsDoNotDependOnTheirBatch) {
  const Case c(dtype(), dtype_info(dtype()).block_elements == 1 ? 65 : 256, kMostRows);
  Random random(24);
  for (int64_t row = 0; row < kMostRows; row += 23) {
    ASSERT_NO_FATAL_FAILURE(check(c, row, 1, kMostOutputs, true));
  }
  for (int i = 0; i < 25; ++i) {
    const int64_t first = random.below(kMostRows);
    const int64_t rows = 1 + random.below(std::min<int64_t>(40, kMostRows - first));
    ASSERT_NO_FATAL_FAILURE(check(c, first, rows, kMostOutputs, i % 2 == 0));
  }
}

std::vector<DType> dtypes() { return {all_dtypes().begin(), all_dtypes().end()}; }

INSTANTIATE_TEST_SUITE_P(, Linear,
                         testing::Combine(testing::ValuesIn(dtypes()),
                                          testing::ValuesIn(supported_targets())),
                         [](const auto& test) {
                           return std::string(dtype_name(std::get<0>(test.param))) + "_" +
                                  target_name(std::get<1>(test.param));
                         });

// The plain loop itself, by hand: k ascending, one rounding per step, the bias last.
TEST(LinearReference, OrderOfTheSum) {
  const float x[] = {1e8f, 1.0f, -1e8f}, w[] = {1.0f, 1.0f, 1.0f, 0.0f, 1.0f, 0.0f};
  const float bias[] = {0.5f, 0.25f};
  float y[2];
  reference::linear(x, 1, 3, w, 2, bias, y);
  EXPECT_EQ(y[0], 0.5f) << "1e8 + 1 rounds to 1e8";
  EXPECT_EQ(y[1], 1.25f);
  const float s = 1.0f + 0x1p-12f, rounded_square = 1.0f + 0x1p-11f;
  const float first[] = {s, -rounded_square}, last[] = {-rounded_square, s};
  const float first_by[] = {s, 1.0f}, last_by[] = {1.0f, s};
  reference::linear(first, 1, 2, first_by, 1, nullptr, y);
  EXPECT_EQ(y[0], 0.0f) << "the first product is rounded when it enters the sum";
  reference::linear(last, 1, 2, last_by, 1, nullptr, y);
  EXPECT_EQ(y[0], 0x1p-24f) << "the second product enters unrounded";
}

}  // namespace
}  // namespace headrace
