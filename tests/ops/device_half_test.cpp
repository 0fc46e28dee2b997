// Ops of a device with f16 operands, but products: close to the plain definitions.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/device/gpu_test.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

using test::halves;
using test::not_numbers;

class DeviceHalf : public test::DeviceTest {
 protected:
  void check_tables(DType dtype, const std::vector<int32_t>& ids,
                    const std::vector<int32_t>& places);
  void check_best(int64_t rows, int64_t width);
  void check_attention(int head_dim, int group, const std::vector<int64_t>& lengths);
  void check_norms(int64_t rows, int64_t n);

  Random random_{11};
};

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

constexpr int64_t kTokens = 97, kPositions = 40;

void DeviceHalf::check_tables(DType dtype, const std::vector<int32_t>& ids,
                              const std::vector<int32_t>& places) {
  const auto device_ids = put(ids), device_places = put(places);
  const auto rows = std::ssize(ids);
  SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", " << rows << " rows");
  // Whole panels of them.
  const auto rows_of = [](std::vector<Half> values, int64_t count) {
    const auto cols = std::ssize(values) / count;
    values.resize(static_cast<size_t>((count + kPanelRows - 1) / kPanelRows * kPanelRows * cols));
    return values;
  };
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
    device_->embed(*stream_, tables, device_ids->as<int32_t>(), nullptr, rows, alone->as<float>());
    device_->embed(*stream_, tables, device_ids->as<int32_t>(), device_places->as<int32_t>(), rows,
                   both->as<float>());
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
    EXPECT_TRUE(same_bits(expected, get<float>(*alone)));
    EXPECT_TRUE(same_bits(expected_both, get<float>(*both)));
  }
}

TEST_P(DeviceHalf, RowsOfTables) {
  for (const DType dtype : all_dtypes()) {
    check_tables(dtype, {96, 0, 31, 32, 5, 5}, {2, 39, 0, 33, 7, 8});
  }
  for (const int32_t rows : {1, 3, 7, 33, 257}) {
    std::vector<int32_t> ids, places;
    for (int32_t i = 0; i < rows; ++i) {
      ids.push_back((7 * i + 31) % kTokens);
      places.push_back((11 * i + 39) % kPositions);
    }
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ4_K, DType::kG4}) {
      check_tables(dtype, ids, places);
    }
  }
}

void DeviceHalf::check_best(int64_t rows, int64_t width) {
  SCOPED_TRACE(testing::Message() << rows << " x " << width);
  auto logits = random_.floats(rows * width);
  const int64_t twice = rows / 4, bad = rows / 2;  // rows with equal ones, and with a NaN
  logits[twice * width + width / 60] = logits[twice * width + width - 1] = 100.0f;
  logits[bad * width + width - 1] = kNan;
  const auto in = put(logits);
  const auto best = put(std::vector<BestToken>(static_cast<size_t>(rows)));
  device_->find_best(*stream_, in->as<float>(), rows, width, 0, best->as<BestToken>());
  // Equals further on do not count.
  device_->find_best(*stream_, in->as<float>(), rows, width, width, best->as<BestToken>());
  const auto found = get<BestToken>(*best);
  for (int64_t row = 0; row < rows; ++row) {
    float most = -INFINITY;
    int32_t token = 0;
    for (int64_t i = 0; i < width; ++i) {
      const float logit = logits[static_cast<size_t>(row * width + i)];
      if (logit > most) {
        most = logit;
        token = static_cast<int32_t>(i);
      }
    }
    const BestToken& b = found[static_cast<size_t>(row)];
    EXPECT_EQ(token, b.token) << row;
    EXPECT_EQ(most, b.logit) << row;
    EXPECT_EQ(row == bad, b.has_nan) << row;
  }
}

TEST_P(DeviceHalf, BestTokens) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{5, 5000}, {3, 151936}, {33, 97}}) {
    check_best(rows, width);
  }
}

// The vocabulary's pieces have one size, rows any.
TEST_P(DeviceHalf, BestTokensOfManyRows) {
  for (const int64_t rows : {1, 7, 257}) check_best(rows, 513);
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
    for (const int group : {1, 3, 7}) check_attention(head_dim, group, {1, 3, 7, 16, 33, 130, 257});
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
  constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 1},  {1, 4864},  {3, 17},
                                                     {7, 64}, {33, 4864}, {257, 896}};
  for (const auto& [rows, width] : kShapes) {
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
      ASSERT_NEAR(f16_to_f32(activated[i].bits), expected, 0x1p-10f * (0.01f + std::abs(expected)))
          << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(On, DeviceHalf, testing::Values(test::Kind::kFake, test::Kind::kGpu),
                         [](const auto& on) { return test::name_of(on); });
}  // namespace
}  // namespace headrace
