// Ops of a device with f16 operands: close to the plain definitions. On a GPU a row's bits are the
// same in any batch.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/device/gpu_test.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

std::vector<Half> halves(const std::vector<float>& values) {
  std::vector<Half> result;
  for (const float value : values) result.push_back(to_half(value));
  return result;
}

std::vector<Half> not_numbers(int64_t count) {
  return std::vector<Half>(static_cast<size_t>(count), Half{0xFFFF});
}

class DeviceHalf : public test::DeviceTest {
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

  void check_attention(int head_dim, int group, const std::vector<int64_t>& lengths);
  void check_norms(int64_t rows, int64_t n);

  Random random_{11};
};

struct Shape {
  int64_t outputs, inputs;
};

// An f32 sum of n products of f16 factors of about one: what rounding may do to it.
float tolerance(int64_t inputs) {
  return 4.0f * static_cast<float>(inputs) * 0x1p-24f * std::sqrt(static_cast<float>(inputs));
}

TEST_P(DeviceHalf, ProductsAreRight) {
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

class GpuProducts : public DeviceHalf {};

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

TEST_P(DeviceHalf, PanelsBecomeRows) {
  for (const DType dtype : all_dtypes()) {
    const int64_t cols = dtype_info(dtype).block_elements == 1 ? 129 : 512, outputs = 97;
    const Weights w = random_weights(dtype, outputs, cols, random_.bits());
    const auto panels = put(w.panels);
    const PackedMatrix matrix{dtype, outputs, cols, panels->data()};
    const auto rows = put(not_numbers((outputs - 32) * cols));
    device_->unpack(*stream_, matrix, 1, 4, rows->as<Half>());
    const auto result = get<Half>(*rows);
    for (size_t i = 0; i < result.size(); ++i) {
      const float expected = w.floats[static_cast<size_t>(32 * cols) + i];
      ASSERT_EQ(to_half(expected).bits, result[i].bits) << dtype_name(dtype) << ", " << i;
    }
  }
}

TEST_P(DeviceHalf, RowsOfTables) {
  constexpr int64_t kTokens = 97, kPositions = 40;
  const std::vector<int32_t> ids = {96, 0, 31, 32, 5, 5}, places = {2, 39, 0, 33, 7, 8};
  const auto device_ids = put(ids), device_places = put(places);
  const auto rows = std::ssize(ids);
  // Whole panels of them.
  const auto rows_of = [](std::vector<Half> values, int64_t count) {
    const auto cols = std::ssize(values) / count;
    values.resize(static_cast<size_t>((count + kPanelRows - 1) / kPanelRows * kPanelRows * cols));
    return values;
  };
  for (const DType dtype : all_dtypes()) {
    const int64_t cols = dtype_info(dtype).block_elements == 1 ? 129 : 512;
    const Weights tokens = random_weights(dtype, kTokens, cols, random_.bits());
    const Weights positions = random_weights(DType::kF32, kPositions, cols, random_.bits());
    const auto token_panels = put(tokens.panels), position_panels = put(positions.panels);
    const auto token_rows = put(rows_of(halves(tokens.floats), kTokens)),
               position_rows = put(rows_of(halves(positions.floats), kPositions));
    EmbeddingTables tables{{dtype, kTokens, cols, token_panels->data()},
                           {DType::kF32, kPositions, cols, position_panels->data()}};
    for (const auto& [rounded, as_rows] : {std::pair{false, false}, {true, false}, {true, true}}) {
      tables.rounded = rounded;
      tables.tokens.half_rows = tables.positions.half_rows = as_rows;
      if (as_rows) {
        tables.tokens.panels = token_rows->data();
        tables.positions.panels = position_rows->data();
      }
      const auto alone = put(nans(rows * cols)), both = put(nans(rows * cols));
      device_->embed(*stream_, tables, device_ids->as<int32_t>(), nullptr, rows,
                     alone->as<float>());
      device_->embed(*stream_, tables, device_ids->as<int32_t>(), device_places->as<int32_t>(),
                     rows, both->as<float>());
      std::vector<float> expected, expected_both;
      const auto value = [&](const Weights& w, int64_t row, int64_t i) {
        const float v = w.floats[static_cast<size_t>(row * cols + i)];
        return rounded ? f16_to_f32(to_half(v).bits) : v;
      };
      for (size_t row = 0; row < ids.size(); ++row) {
        for (int64_t i = 0; i < cols; ++i) {
          expected.push_back(value(tokens, ids[row], i));
          expected_both.push_back(expected.back() + value(positions, places[row], i));
        }
      }
      EXPECT_TRUE(same_bits(expected, get<float>(*alone))) << dtype_name(dtype);
      EXPECT_TRUE(same_bits(expected_both, get<float>(*both))) << dtype_name(dtype);
    }
  }
}

TEST_P(DeviceHalf, BestTokens) {
  constexpr int64_t kRows = 5, kWidth = 5000;
  auto logits = random_.floats(kRows * kWidth);
  logits[1 * kWidth + 77] = logits[1 * kWidth + 4000] = 100.0f;
  logits[3 * kWidth + 4999] = kNan;
  const auto in = put(logits);
  const auto best = put(std::vector<BestToken>(kRows));
  device_->find_best(*stream_, in->as<float>(), kRows, kWidth, 0, best->as<BestToken>());
  // Equals further on do not count.
  device_->find_best(*stream_, in->as<float>(), kRows, kWidth, kWidth, best->as<BestToken>());
  const auto found = get<BestToken>(*best);
  for (int64_t row = 0; row < kRows; ++row) {
    float most = -INFINITY;
    int32_t token = 0;
    for (int64_t i = 0; i < kWidth; ++i) {
      const float logit = logits[static_cast<size_t>(row * kWidth + i)];
      if (logit > most) {
        most = logit;
        token = static_cast<int32_t>(i);
      }
    }
    const BestToken& b = found[static_cast<size_t>(row)];
    EXPECT_EQ(token, b.token);
    EXPECT_EQ(most, b.logit);
    EXPECT_EQ(row == 3, b.has_nan);
  }
}

// A ragged batch against the plain definition in double, and row by row.
void DeviceHalf::check_attention(int head_dim, int group, const std::vector<int64_t>& lengths) {
  constexpr int kKvHeads = 2;
  constexpr int64_t kPiece = 39;
  SCOPED_TRACE(testing::Message() << head_dim << " wide, groups of " << group);
  const int heads = kKvHeads * group;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const KvPageShape shape{kKvHeads, head_dim, KvFormat::kF16};
  const size_t stride = shape.page_bytes();
  const int64_t most = *std::max_element(lengths.begin(), lengths.end());
  int64_t rows = 0, pages = 0;
  std::vector<AttentionSequence> sequences;
  for (const int64_t length : lengths) {
    sequences.push_back({rows, length, 0, nullptr});
    rows += length;
    pages += (length + kPageTokens - 1) / kPageTokens;
  }
  const auto k = random_.floats(rows * kKvHeads * head_dim, 1.0f);
  const auto v = random_.floats(rows * kKvHeads * head_dim, 1.0f);
  const auto q = random_.floats(rows * heads * head_dim, 2.0f);
  // What no token is stored in is not a number.
  const auto memory =
      put(std::vector<std::byte>(static_cast<size_t>(pages) * stride, std::byte{0xFF}));
  std::vector<std::byte*> table;
  for (size_t i = 0; i < static_cast<size_t>(pages); ++i) {
    table.push_back(memory->data() + i * stride);
  }
  const auto tables = put(table);
  size_t page = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].pages = tables->as<std::byte*>() + page;
    page += static_cast<size_t>((lengths[i] + kPageTokens - 1) / kPageTokens);
  }
  const auto device_k = put(k), device_v = put(v), device_q = put(q);
  const auto list = put(sequences);
  device_->store_kv(*stream_, shape, list->as<AttentionSequence>(), std::ssize(sequences), most,
                    device_k->as<float>(), device_v->as<float>());
  const auto attend = [&](const std::vector<AttentionSequence>& some, int64_t most_rows) {
    const auto on_device = put(some);
    const auto out = put(not_numbers(rows * heads * head_dim));
    device_->attention(*stream_, shape, on_device->as<AttentionSequence>(), std::ssize(some),
                       most_rows, heads, scale, device_q->as<float>(), out->as<Half>());
    return get<Half>(*out);
  };
  const auto out = attend(sequences, most);
  // One row at a time.
  std::vector<AttentionSequence> single;
  for (const AttentionSequence& s : sequences) {
    for (int64_t i = 0; i < s.rows; ++i) {
      single.push_back({s.first_row + i, 1, s.first_position + i, s.pages});
    }
  }
  const auto alone = attend(single, 1);
  for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i].bits, alone[i].bits) << i;
  // In pieces, as prompts are that do not fit in a step.
  std::vector<AttentionSequence> pieces;
  for (const AttentionSequence& s : sequences) {
    for (int64_t i = 0; i < s.rows; i += kPiece) {
      const int64_t count = std::min(kPiece, s.rows - i);
      pieces.push_back({s.first_row + i, count, s.first_position + i, s.pages});
    }
  }
  const auto cut = attend(pieces, kPiece);
  for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i].bits, cut[i].bits) << i;

  const auto rounded = [](float value) {
    return static_cast<double>(f16_to_f32(to_half(value).bits));
  };
  for (const AttentionSequence& s : sequences) {
    for (int64_t row = 0; row < s.rows; row += 5) {
      for (int head = 0; head < heads; ++head) {
        const auto at = [&](int64_t r, int h, int count) {
          return static_cast<size_t>(((s.first_row + r) * count + h) * head_dim);
        };
        std::vector<double> weights;
        double peak = -1e30, sum = 0;
        for (int64_t t = 0; t <= row; ++t) {
          double dot = 0;
          for (size_t d = 0; d < static_cast<size_t>(head_dim); ++d) {
            dot += static_cast<double>(q[at(row, head, heads) + d]) *
                   rounded(k[at(t, head / group, kKvHeads) + d]);
          }
          weights.push_back(dot * static_cast<double>(scale));
          peak = std::max(peak, weights.back());
        }
        for (double& w : weights) sum += w = std::exp(w - peak);
        for (size_t d = 0; d < static_cast<size_t>(head_dim); ++d) {
          double expected = 0;
          for (size_t t = 0; t < weights.size(); ++t) {
            expected += weights[t] / sum *
                        rounded(v[at(static_cast<int64_t>(t), head / group, kKvHeads) + d]);
          }
          ASSERT_NEAR(f16_to_f32(out[at(row, head, heads) + d].bits), expected, 4e-3);
        }
      }
    }
  }
}

TEST_P(DeviceHalf, Attention) {
  for (const int head_dim : {16, 64, 80, 128}) {
    for (const int group : {1, 3, 7}) check_attention(head_dim, group, {1, 16, 33, 130, 257});
  }
}

// For tools that look at every access.
TEST_P(DeviceHalf, SmallAttention) { check_attention(64, 3, {1, 33, 70}); }

void DeviceHalf::check_norms(int64_t rows, int64_t n) {
  SCOPED_TRACE(testing::Message() << rows << " x " << n);
  const auto x = random_.floats(rows * n, 3.0f), weight = random_.floats(n),
             bias = random_.floats(n);
  const auto in = put(x), w = put(weight), b = put(bias);
  for (const bool is_layer : {false, true}) {
    const auto out = put(not_numbers(rows * n));
    device_->normalise(*stream_, {n, w->as<float>(), is_layer ? b->as<float>() : nullptr, 1e-5f},
                       in->as<float>(), rows, out->as<Half>());
    const auto y = get<Half>(*out);
    for (int64_t row = 0; row < rows; ++row) {
      const std::span from(x.data() + row * n, static_cast<size_t>(n));
      const auto expected = is_layer ? reference::layer_norm(from, weight, bias, 1e-5f)
                                     : reference::rms_norm(from, weight, 1e-5f);
      for (int64_t i = 0; i < n; ++i) {
        const float e = expected[static_cast<size_t>(i)];
        ASSERT_NEAR(f16_to_f32(y[static_cast<size_t>(row * n + i)].bits), e,
                    0x1p-10f * (1.0f + std::abs(e)));
      }
    }
  }
}

TEST_P(DeviceHalf, Norms) {
  for (const int64_t rows : {1, 7, 33, 257}) {
    for (const int64_t n : {17, 64, 896}) check_norms(rows, n);
  }
}

TEST_P(DeviceHalf, SmallNorms) {
  for (const int64_t n : {17, 64, 896, 9000}) check_norms(3, n);
}

// Of a gate whose rows lie apart, and as they are.
TEST_P(DeviceHalf, Activations) {
  constexpr float kScale = 0.25f;
  for (const int64_t rows : {1, 3, 7, 33}) {
    for (const int64_t width : {1, 17, 64, 4864}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << width);
      const int64_t stride = width + 8;
      const auto gate = random_.floats(rows * stride, 4.0f), up = random_.floats(rows * width);
      const auto g = put(gate), u = put(up), y = put(not_numbers(rows * stride));
      device_->silu_multiply(*stream_, g->as<float>(), u->as<float>(), rows, width, stride, kScale,
                             y->as<Half>());
      const auto h = put(not_numbers(std::ssize(gate)));
      device_->to_half(*stream_, g->as<float>(), std::ssize(gate), h->as<Half>());
      const auto activated = get<Half>(*y), rounded = get<Half>(*h);
      for (size_t i = 0; i < gate.size(); ++i) {
        ASSERT_EQ(to_half(gate[i]).bits, rounded[i].bits) << i;
        const int64_t row = static_cast<int64_t>(i) / stride, at = static_cast<int64_t>(i) % stride;
        if (at >= width) {
          ASSERT_EQ(activated[i].bits, 0xFFFF) << i;
          continue;
        }
        const float factor = up[static_cast<size_t>(row * width + at)];
        const float expected = kScale * reference::silu(gate[i]) * factor;
        ASSERT_NEAR(f16_to_f32(activated[i].bits), expected,
                    0x1p-10f * (0.01f + std::abs(expected)))
            << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(On, DeviceHalf, testing::Values(test::Kind::kFake, test::Kind::kGpu),
                         [](const auto& on) { return test::name_of(on); });
INSTANTIATE_TEST_SUITE_P(On, GpuProducts, testing::Values(test::Kind::kGpu),
                         [](const auto& on) { return test::name_of(on); });

}  // namespace
}  // namespace headrace
