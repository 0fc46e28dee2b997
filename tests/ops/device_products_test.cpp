// Products of a device with f16 operands: close to the plain definition. On a GPU a row's bits are
// the same in any batch.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/device/gpu_test.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"

namespace headrace {
namespace {

using test::halves;
using test::not_numbers;

class DeviceProducts : public test::DeviceTest {
 protected:
  // Rows of a product into a poisoned result.
  std::vector<float> multiply(DeviceBuffer& x, int64_t first_row, int64_t rows, DeviceBuffer& w,
                              int64_t first_output, int64_t outputs, int64_t inputs,
                              const float* bias) {
    return multiply(nans(rows * outputs), HalfProduct::Result::kFloat, x, first_row, rows, w,
                    first_output, outputs, inputs, bias);
  }
  std::vector<Half> multiply_relu(DeviceBuffer& x, int64_t first_row, int64_t rows, DeviceBuffer& w,
                                  int64_t outputs, int64_t inputs, const float* bias) {
    return multiply(not_numbers(rows * outputs), HalfProduct::Result::kReluHalf, x, first_row, rows,
                    w, 0, outputs, inputs, bias);
  }
  // Into what was something before.
  template <typename T>
  std::vector<T> multiply(const std::vector<T>& before, HalfProduct::Result result, DeviceBuffer& x,
                          int64_t first_row, int64_t rows, DeviceBuffer& w, int64_t first_output,
                          int64_t outputs, int64_t inputs, const float* bias) {
    const auto y = put(before);
    device_->multiply(*stream_, {.x = x.as<Half>() + first_row * inputs,
                                 .rows = rows,
                                 .w = w.as<Half>() + first_output * inputs,
                                 .outputs = outputs,
                                 .inputs = inputs,
                                 .bias = bias ? bias + first_output : nullptr,
                                 .result = result,
                                 .y = y->data(),
                                 .stride = outputs});
    return get<T>(*y);
  }

  Random random_{11};
};

struct Shape {
  int64_t outputs, inputs;
};

// An f32 sum of n products of f16 factors of about one: what rounding may do to it.
float tolerance(int64_t inputs) {
  return 4.0f * static_cast<float>(inputs) * 0x1p-24f * std::sqrt(static_cast<float>(inputs));
}

TEST_P(DeviceProducts, AreRight) {
  for (const Shape& shape : {Shape{97, 64}, Shape{128, 896}, Shape{896, 4864}, Shape{50272, 256}}) {
    if (is_fake() && shape.outputs * shape.inputs > 1 << 18) continue;  // slow
    const auto w = halves(random_.floats(shape.outputs * shape.inputs));
    const auto bias = random_.floats(shape.outputs);
    const auto device_w = put(w), device_bias = put(bias);
    for (const int64_t rows : {1, 3, 7, 33, 257}) {
      SCOPED_TRACE(testing::Message() << shape.outputs << " x " << shape.inputs << ", " << rows);
      const auto x = halves(random_.floats(rows * shape.inputs));
      const auto device_x = put(x);
      const auto before = random_.floats(rows * shape.outputs);
      const auto added = put(before), relu = put(not_numbers(std::ssize(before)));
      HalfProduct product{.x = device_x->as<Half>(),
                          .rows = rows,
                          .w = device_w->as<Half>(),
                          .outputs = shape.outputs,
                          .inputs = shape.inputs,
                          .bias = device_bias->as<float>(),
                          .scale = 0.5f,
                          .result = HalfProduct::Result::kAdded,
                          .y = added->data(),
                          .stride = shape.outputs};
      device_->multiply(*stream_, product);
      product.result = HalfProduct::Result::kReluHalf;
      product.y = relu->data();
      device_->multiply(*stream_, product);
      const auto y = multiply(*device_x, 0, rows, *device_w, 0, shape.outputs, shape.inputs,
                              device_bias->as<float>());
      const auto sums = get<float>(*added);
      const auto positive = get<Half>(*relu);
      for (int64_t row = 0; row < rows; row += std::max<int64_t>(1, rows / 3)) {
        for (int64_t n = 0; n < shape.outputs; n += 13) {
          double sum = 0;
          for (int64_t k = 0; k < shape.inputs; ++k) {
            sum +=
                static_cast<double>(
                    f16_to_f32(x[static_cast<size_t>(row * shape.inputs + k)].bits)) *
                static_cast<double>(f16_to_f32(w[static_cast<size_t>(n * shape.inputs + k)].bits));
          }
          const auto at = static_cast<size_t>(row * shape.outputs + n);
          const double b = bias[static_cast<size_t>(n)];
          ASSERT_NEAR(y[at], sum + b, tolerance(shape.inputs));
          ASSERT_NEAR(sums[at], sum / 2 + b + before[at], tolerance(shape.inputs));
          const double expected = std::max(0.0, sum / 2 + b);
          // The bias is rounded to f16, too.
          ASSERT_NEAR(f16_to_f32(positive[at].bits), expected,
                      tolerance(shape.inputs) + 0x1p-10 * (std::abs(b) + expected));
        }
      }
    }
  }
}

// Of low-bit weights, the bits of those that were expanded before.
TEST_P(DeviceProducts, WithPackedWeights) {
  for (const DType dtype : all_dtypes()) {
    const int64_t block = dtype_info(dtype).block_elements;
    if (block == 1) continue;
    for (const Shape& shape : {Shape{97, 1024}, Shape{1000, 5 * std::max<int64_t>(block, 128)}}) {
      if (is_fake() && shape.outputs > 100) continue;  // slow
      const Weights w = random_weights(dtype, shape.outputs, shape.inputs, random_.bits());
      const auto panels = put(w.panels), expanded = put(halves(w.floats));
      const auto bias = put(random_.floats(shape.outputs));
      const PackedMatrix matrix{dtype, shape.outputs, shape.inputs, panels->data()};
      for (const int64_t rows : {1, 3, 8, 9, 17, 33, 64, 65}) {
        const auto x = put(halves(random_.floats(rows * shape.inputs)));
        for (const auto result : {HalfProduct::Result::kFloat, HalfProduct::Result::kAdded,
                                  HalfProduct::Result::kReluHalf}) {
          SCOPED_TRACE(testing::Message()
                       << dtype_name(dtype) << ", " << shape.outputs << " x " << shape.inputs
                       << ", " << rows << " rows, result " << static_cast<int>(result));
          const auto before = random_.floats(rows * shape.outputs);
          const auto y = put(before), packed_y = put(before);
          const auto room = put(not_numbers(shape.outputs * shape.inputs));
          HalfProduct p{.x = x->as<Half>(),
                        .rows = rows,
                        .w = expanded->as<Half>(),
                        .outputs = shape.outputs,
                        .inputs = shape.inputs,
                        .bias = bias->as<float>(),
                        .scale = 0.25f,
                        .result = result,
                        .y = y->data(),
                        .stride = shape.outputs};
          device_->multiply(*stream_, p);
          p.w = nullptr;
          p.y = packed_y->data();
          const PackedProduct packed{p, matrix};
          device_->multiply_packed(*stream_, {&packed, 1}, room->as<Half>());
          ASSERT_TRUE(same_bits(get<float>(*y), get<float>(*packed_y)));
        }
      }
    }
  }
}

class GpuProducts : public DeviceProducts {};

TEST_P(GpuProducts, ARowsBitsDoNotDependOnTheBatch) {
  for (const Shape& shape :
       {Shape{4864, 896}, Shape{896, 4864}, Shape{4096, 4096}, Shape{16384, 4096},
        Shape{4096, 16384}, Shape{1024, 1024}, Shape{1024, 4096}, Shape{160, 64}}) {
    constexpr int64_t kRows = 2048;
    const auto w = put(halves(random_.floats(shape.outputs * shape.inputs)));
    const auto x = put(halves(random_.floats(kRows * shape.inputs)));
    const auto bias = put(random_.floats(shape.outputs));
    const auto all = multiply(*x, 0, kRows, *w, 0, shape.outputs, shape.inputs, bias->as<float>());
    const auto before = random_.floats(kRows * shape.outputs);
    const auto sums = multiply(before, HalfProduct::Result::kAdded, *x, 0, kRows, *w, 0,
                               shape.outputs, shape.inputs, bias->as<float>());
    const auto relu =
        multiply_relu(*x, 0, kRows, *w, shape.outputs, shape.inputs, bias->as<float>());
    for (const int64_t rows : {1, 2, 3, 4, 7, 16, 33, 64, 144, 256, 600, 1024}) {
      SCOPED_TRACE(testing::Message() << shape.outputs << " x " << shape.inputs << ", " << rows);
      const int64_t first = kRows - rows - 5;
      const auto part = [&](const std::vector<float>& of) {
        const auto begin = of.begin() + first * shape.outputs;
        return std::vector<float>(begin, begin + rows * shape.outputs);
      };
      const auto some =
          multiply(*x, first, rows, *w, 0, shape.outputs, shape.inputs, bias->as<float>());
      ASSERT_TRUE(same_bits(part(all), some));
      const auto some_sums = multiply(part(before), HalfProduct::Result::kAdded, *x, first, rows,
                                      *w, 0, shape.outputs, shape.inputs, bias->as<float>());
      ASSERT_TRUE(same_bits(part(sums), some_sums)) << "added";
      const auto some_relu =
          multiply_relu(*x, first, rows, *w, shape.outputs, shape.inputs, bias->as<float>());
      ASSERT_EQ(0, std::memcmp(relu.data() + first * shape.outputs, some_relu.data(),
                               some_relu.size() * sizeof(Half)))
          << "relu";
    }
    // Nor on how the outputs are cut.
    const int64_t part = shape.outputs / 32 / 2 * 32;
    for (const int64_t rows : {1, 64, 600}) {
      SCOPED_TRACE(testing::Message() << "cut of " << shape.outputs << " x " << shape.inputs);
      const auto some =
          multiply(*x, 0, rows, *w, part, shape.outputs - part, shape.inputs, bias->as<float>());
      for (int64_t row = 0; row < rows; ++row) {
        const auto begin = all.begin() + row * shape.outputs + part;
        const auto mine = some.begin() + row * (shape.outputs - part);
        ASSERT_TRUE(same_bits(std::vector<float>(begin, begin + shape.outputs - part),
                              std::vector<float>(mine, mine + shape.outputs - part)));
      }
    }
  }
}

// Nor on what was computed before.
TEST_P(GpuProducts, ARowsBitsWhereOneRowComesFirst) {
  constexpr int64_t kRows = 300;
  using Result = HalfProduct::Result;
  for (const Shape& shape : {Shape{1024, 4096}, Shape{4096, 1024}, Shape{896, 4864}}) {
    SCOPED_TRACE(testing::Message() << shape.outputs << " x " << shape.inputs);
    const auto w = put(halves(random_.floats(shape.outputs * shape.inputs)));
    const auto x = put(halves(random_.floats(kRows * shape.inputs)));
    const auto bias = put(random_.floats(shape.outputs));
    const auto before = random_.floats(kRows * shape.outputs);
    const std::vector<float> first_before(before.begin(), before.begin() + shape.outputs);
    const auto product = [&](Result result, int64_t rows) {
      return multiply(rows == 1 ? first_before : before, result, *x, 0, rows, *w, 0, shape.outputs,
                      shape.inputs, bias->as<float>());
    };
    for (const Result result : {Result::kFloat, Result::kAdded}) {
      const auto one = product(result, 1);
      auto all = product(result, kRows);
      all.resize(one.size());
      EXPECT_TRUE(same_bits(one, all));
    }
    const auto relu = [&](int64_t rows) {
      return multiply_relu(*x, 0, rows, *w, shape.outputs, shape.inputs, bias->as<float>());
    };
    const auto one = relu(1), all = relu(kRows);
    EXPECT_EQ(0, std::memcmp(one.data(), all.data(), one.size() * sizeof(Half))) << "relu";
  }
}

// As those of q, k and v, which have the bits of each alone.
TEST_P(GpuProducts, ProductsAtOnce) {
  constexpr int kCount = 3;
  constexpr int64_t kRows = 600, kBiasGap = 16;
  for (const Shape& shape : {Shape{4096, 4096}, Shape{768, 768}, Shape{97, 64}}) {
    const int64_t each = shape.outputs * shape.inputs, bias_apart = shape.outputs + kBiasGap;
    const auto w = put(halves(random_.floats(kCount * each)));
    const auto x = put(halves(random_.floats(kRows * shape.inputs)));
    const auto bias = put(random_.floats(kCount * bias_apart));
    for (const bool is_biased : {false, true}) {
      // 33 rows twice, with results that lie elsewhere.
      for (const auto& [rows, gap] :
           {std::pair<int64_t, int64_t>{1, 8}, {4, 0}, {33, 8}, {33, 40}, {kRows, 8}}) {
        SCOPED_TRACE(testing::Message() << shape.outputs << " x " << shape.inputs << ", " << rows);
        const int64_t y_apart = (rows + gap) * shape.outputs;
        const float* const first_bias = is_biased ? bias->as<float>() : nullptr;
        const auto y = put(nans(kCount * y_apart));
        device_->multiply(*stream_, {.x = x->as<Half>(),
                                     .rows = rows,
                                     .w = w->as<Half>(),
                                     .outputs = shape.outputs,
                                     .inputs = shape.inputs,
                                     .bias = first_bias,
                                     .y = y->data(),
                                     .stride = shape.outputs,
                                     .count = kCount,
                                     .w_apart = each,
                                     .bias_apart = bias_apart,
                                     .y_apart = y_apart});
        const auto all = get<float>(*y);
        for (int i = 0; i < kCount; ++i) {
          const auto one = multiply(*x, 0, rows, *w, i * shape.outputs, shape.outputs, shape.inputs,
                                    first_bias ? first_bias + i * kBiasGap : nullptr);
          const auto begin = all.begin() + i * y_apart, end = begin + rows * shape.outputs;
          ASSERT_TRUE(same_bits(std::vector<float>(begin, end), one)) << i;
          ASSERT_TRUE(std::all_of(end, begin + y_apart, [](float v) { return std::isnan(v); }));
        }
      }
    }
  }
}

// As a head is that does not lie on the device.
TEST_P(GpuProducts, ATallMatrixInPieces) {
  constexpr int64_t kOutputs = 151936, kInputs = 896, kPiece = 16384;
  const auto w = put(halves(random_.floats(kOutputs * kInputs)));
  for (const int64_t rows : {1, 7, 64}) {
    const auto x = put(halves(random_.floats(rows * kInputs)));
    const auto all = multiply(*x, 0, rows, *w, 0, kOutputs, kInputs, nullptr);
    const auto pieces = put(nans(rows * kOutputs));
    for (int64_t first = 0; first < kOutputs; first += kPiece) {
      device_->multiply(*stream_, {.x = x->as<Half>(),
                                   .rows = rows,
                                   .w = w->as<Half>() + first * kInputs,
                                   .outputs = std::min(kPiece, kOutputs - first),
                                   .inputs = kInputs,
                                   .y = pieces->as<float>() + first,
                                   .stride = kOutputs});
    }
    EXPECT_TRUE(same_bits(all, get<float>(*pieces))) << rows << " rows";
  }
}

INSTANTIATE_TEST_SUITE_P(On, DeviceProducts, testing::Values(test::Kind::kFake, test::Kind::kGpu),
                         [](const auto& on) { return test::name_of(on); });
INSTANTIATE_TEST_SUITE_P(On, GpuProducts, testing::Values(test::Kind::kGpu),
                         [](const auto& on) { return test::name_of(on); });

}  // namespace
}  // namespace headrace
