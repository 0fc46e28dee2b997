// Norms, activations, exp, sum_exp and argmax on every target against the plain definitions.

#include "engine/ops/vector_ops.h"

#include <algorithm>

#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

using VectorOps = OpTest;

constexpr int64_t kWidths[] = {1, 5, 16, 17, 63, 64, 576, 896, 4097};
// 4097 x 5 elements is enough to be spread over threads.
constexpr int64_t kRows[] = {1, 5};
constexpr float kMagnitudes[] = {1.0f, 1e-30f, 1e-12f, 1e5f, 1e15f};

std::span<const float> row_of(const std::vector<float>& x, int64_t row, int64_t n) {
  return std::span(x).subspan(static_cast<size_t>(row * n), static_cast<size_t>(n));
}

// Calls f(rows, n, x) for all widths, heights and magnitudes; every 7th element is -0.
template <typename F>
void for_shapes(F f) {
  Random random(1);
  for (const int64_t n : kWidths) {
    for (const int64_t rows : kRows) {
      for (const float magnitude : kMagnitudes) {
        SCOPED_TRACE(testing::Message() << rows << " x " << n << ", magnitude " << magnitude);
        std::vector<float> x = random.floats(rows * n, magnitude);
        for (size_t i = 3; i < x.size(); i += 7) x[i] = -0.0f;
        f(rows, n, x);
      }
    }
  }
}

template <typename RowFunction>
std::vector<float> each_row(const std::vector<float>& x, int64_t rows, int64_t n, RowFunction f) {
  std::vector<float> y;
  for (int64_t i = 0; i < rows; ++i) {
    const std::vector<float> row = f(row_of(x, i, n));
    y.insert(y.end(), row.begin(), row.end());
  }
  return y;
}

TEST_P(VectorOps, RmsNorm) {
  Random random(2);
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> weight = random.floats(n, 2.0f);
    for (const float eps : {1e-5f, 1e-6f}) {
      const std::vector<float> expected =
          each_row(x, rows, n, [&](auto row) { return reference::rms_norm(row, weight, eps); });
      std::vector<float> y = nans(rows * n);
      rms_norm(cpu_, x.data(), rows, n, weight.data(), eps, y.data());
      ASSERT_TRUE(same_bits(expected, y));
      y = x;
      rms_norm(cpu_, y.data(), rows, n, weight.data(), eps, y.data());
      ASSERT_TRUE(same_bits(expected, y)) << "in place";
    }
  });
}

TEST_P(VectorOps, LayerNorm) {
  Random random(3);
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> weight = random.floats(n, 2.0f), bias = random.floats(n);
    const std::vector<float> expected = each_row(
        x, rows, n, [&](auto row) { return reference::layer_norm(row, weight, bias, 1e-5f); });
    std::vector<float> y = nans(rows * n);
    layer_norm(cpu_, x.data(), rows, n, weight.data(), bias.data(), 1e-5f, y.data());
    ASSERT_TRUE(same_bits(expected, y));
    y = x;
    layer_norm(cpu_, y.data(), rows, n, weight.data(), bias.data(), 1e-5f, y.data());
    ASSERT_TRUE(same_bits(expected, y)) << "in place";
  });
}

// The plain definitions are right, too: against the formulas in double.
TEST(VectorOpsReference, NormsAgreeWithDouble) {
  Random random(4);
  const std::vector<float> x = random.floats(576, 3.0f), weight = random.floats(576);
  const std::vector<float> bias = random.floats(576);
  double squares = 0, mean = 0, variance = 0;
  for (const float v : x) squares += static_cast<double>(v) * v / 576;
  for (const float v : x) mean += static_cast<double>(v) / 576;
  for (const float v : x) variance += (v - mean) * (v - mean) / 576;
  const std::vector<float> rms = reference::rms_norm(x, weight, 1e-5f);
  const std::vector<float> layer = reference::layer_norm(x, weight, bias, 1e-5f);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(rms[i], x[i] / std::sqrt(squares + 1e-5) * weight[i], 2e-6);
    EXPECT_NEAR(layer[i], (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i], 2e-6);
  }
}

TEST_P(VectorOps, Add) {
  Random random(5);
  for_shapes([&](int64_t rows, int64_t n, std::vector<float>& x) {
    const std::vector<float> y = random.floats(rows * n);
    std::vector<float> expected = x;
    for (size_t i = 0; i < x.size(); ++i) expected[i] = x[i] + y[i];
    add(cpu_, x.data(), y.data(), rows, n);
    ASSERT_TRUE(same_bits(expected, x));
  });
}

TEST_P(VectorOps, Relu) {
  Random random(6);
  for_shapes([&](int64_t rows, int64_t n, std::vector<float>& x) {
    const float special[] = {-0.0f, 0.0f, kNan, -kNan, kInf, -kInf, 1e-45f, -1e-45f};
    for (size_t i = 0; i < x.size(); i += 5) x[i] = special[random.below(8)];
    std::vector<float> expected = x;
    std::transform(x.begin(), x.end(), expected.begin(), reference::relu);
    relu(cpu_, x.data(), rows, n);
    ASSERT_TRUE(same_bits(expected, x));
    for (const float v : x) ASSERT_FALSE(std::signbit(v)) << "-0 and NaN become +0";
  });
}

TEST_P(VectorOps, SiluMultiply) {
  Random random(7);
  for_shapes([&](int64_t rows, int64_t n, std::vector<float>& x) {
    const float special[] = {100.0f, -100.0f, 87.5f, -88.5f, kInf, 1e-45f, kNan};
    for (size_t i = 0; i < x.size(); i += 3) x[i] = random.unit() * 20.0f;
    for (size_t i = 1; i < x.size(); i += 11) x[i] = special[random.below(7)];
    const std::vector<float> up = random.floats(rows * n, 5.0f);
    std::vector<float> expected = x;
    for (size_t i = 0; i < x.size(); ++i) expected[i] = reference::silu(x[i]) * up[i];
    cpu_.kernels.silu_multiply(x.data(), up.data(), rows * n);
    ASSERT_TRUE(same_bits(expected, x));
  });
}

// sum_exp of one element is exp itself, on the scalar tail; of 16 equal ones it is 16 exp.
TEST_P(VectorOps, ExpOverADenseSweep) {
  std::vector<float> sixteen(16);
  const auto check = [&](float x) {
    const float expected = reference::exp(x);
    ASSERT_TRUE(same_bits(expected, canonical_exp(x))) << x;
    ASSERT_TRUE(same_bits(expected, kernels_.sum_exp(&x, 0.0f, 1))) << x;
    std::fill(sixteen.begin(), sixteen.end(), x);
    ASSERT_TRUE(same_bits(expected * 16.0f, kernels_.sum_exp(sixteen.data(), 0.0f, 16))) << x;
  };
  for (int i = -90 * 1024; i <= 90 * 1024; ++i) check(static_cast<float>(i) * 0x1p-10f + 0x1p-13f);
  for (uint32_t bits = 0; bits < 0x43000000u; bits += 30011) {  // every magnitude up to 128
    check(std::bit_cast<float>(bits));
    check(-std::bit_cast<float>(bits));
  }
  for (const float x : {-87.0f, 88.0f, -87.00001f, 88.00001f, kInf, -kInf, kNan, -0.0f}) check(x);
}

// The measured bound is 1.05 ulp of the rounded exact value, over 16 million floats.
TEST(CanonicalExp, IsAccurate) {
  constexpr double kBound = 1.05;
  double worst = 0, worst_at = 0;
  const auto check = [&](float x) {
    const double exact = std::exp(static_cast<double>(x));
    const auto rounded = static_cast<float>(exact);
    const double ulp = static_cast<double>(std::nextafter(rounded, kInf)) - rounded;
    const double error = std::abs(canonical_exp(x) - exact) / ulp;
    if (error > worst) worst = error, worst_at = x;
  };
  for (int64_t i = -87 * 65536; i <= 88 * 65536; ++i) check(static_cast<float>(i) * 0x1p-16f);
  for (uint32_t bits = 0; bits < 0x42AE0000u; bits += 499) {  // every magnitude up to 87
    check(std::bit_cast<float>(bits));
    check(-std::bit_cast<float>(bits));
  }
  EXPECT_LE(worst, kBound) << "at " << worst_at;
  EXPECT_GT(worst, 0.5) << "a float cannot be this exact everywhere: the sweep measures nothing";
  RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_EQ(canonical_exp(0.0f), 1.0f);
  EXPECT_EQ(canonical_exp(-1000.0f), canonical_exp(-87.0f));
  EXPECT_EQ(canonical_exp(kInf), canonical_exp(88.0f));
  EXPECT_GE(canonical_exp(-87.0f), std::numeric_limits<float>::min());
  EXPECT_LT(canonical_exp(88.0f), kInf);
}

TEST_P(VectorOps, SumExpWithEveryTail) {
  Random random(8);
  for (int64_t n = 1; n <= 100; ++n) {
    const std::vector<float> x = random.floats(n, 12.0f);
    for (const float shift : {0.0f, 11.5f, -3.25f}) {
      ASSERT_TRUE(same_bits(reference::sum_exp(x, shift), kernels_.sum_exp(x.data(), shift, n)))
          << n << " elements";
    }
  }
  const std::vector<float> vocabulary = random.floats(49153, 30.0f);
  const float expected = reference::sum_exp(vocabulary, 30.0f);
  EXPECT_TRUE(same_bits(expected, kernels_.sum_exp(vocabulary.data(), 30.0f, 49153)));
}

TEST_P(VectorOps, Argmax) {
  Random random(9);
  const auto check = [&](const std::vector<float>& x) {
    ASSERT_EQ(reference::argmax(x), kernels_.argmax(x.data(), std::ssize(x)));
  };
  for (const int64_t n : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1000}) {
    check(random.floats(n));
    check(std::vector<float>(static_cast<size_t>(n), -kInf));
    check(nans(n));
    for (int round = 0; round < 200;
         ++round) {  // few distinct values: ties, NaN, infinities, zeros
      const float few[] = {1.0f, -1.0f, kNan, -kInf, 0.0f, -0.0f, -kNan, round % 4 ? 2.0f : kInf};
      std::vector<float> x(static_cast<size_t>(n));
      for (float& v : x) v = few[random.below(8)];
      check(x);
      for (float& v : x) v = few[2 + random.below(2)];
      check(x);
    }
    for (int64_t i = 0; i < n; ++i) {
      std::vector<float> x(static_cast<size_t>(n), -5.0f);
      x[static_cast<size_t>(i)] = -4.0f;
      ASSERT_EQ(i, kernels_.argmax(x.data(), n));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, VectorOps, testing::ValuesIn(all_op_configs()), config_name);

}  // namespace
}  // namespace headrace
