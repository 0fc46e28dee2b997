// Ops of a device against the plain definitions: the same bits, in odd shapes, outputs poisoned
// before. tests/ops/row_blocks_test.cpp runs the GPU's programs on the CPU.

#include <algorithm>
#include <utility>

#include "engine/ops/attention.h"
#include "tests/device/gpu_test.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

constexpr int64_t kWidths[] = {1, 17, 64, 576, 896, 4097, 13000};  // the last: more than 48 KiB
constexpr int64_t kRows[] = {1, 3, 7, 33, 257};

class DeviceOps : public test::DeviceTest {
 protected:
  // Calls f(rows, n, x) for all shapes; every 7th element is -0.
  template <typename F>
  void for_shapes(F f) {
    for (const int64_t n : kWidths) {
      for (const int64_t rows : kRows) {
        SCOPED_TRACE(testing::Message() << rows << " x " << n);
        std::vector<float> x = random_.floats(rows * n, 3.0f);
        for (size_t i = 3; i < x.size(); i += 7) x[i] = -0.0f;
        f(rows, n, x);
      }
    }
  }

  template <typename RowFunction>
  static std::vector<float> each_row(const std::vector<float>& x, int64_t n, RowFunction f) {
    std::vector<float> y;
    for (size_t at = 0; at < x.size(); at += static_cast<size_t>(n)) {
      const std::vector<float> row = f(std::span(x).subspan(at, static_cast<size_t>(n)));
      y.insert(y.end(), row.begin(), row.end());
    }
    return y;
  }

  void check_linear(DType dtype, int64_t rows);
  void check_attention(KvFormat format, int head_dim, const std::vector<int64_t>& lengths,
                       const std::vector<int64_t>& more);

  Random random_{7};
};

TEST_P(DeviceOps, RmsNorm) {
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> weight = random_.floats(n, 2.0f);
    const auto in = put(x), w = put(weight), out = put(nans(rows * n));
    device_->normalise(*stream_, {n, w->as<float>(), nullptr, 1e-5f}, in->as<float>(), rows,
                       out->as<float>());
    const auto expected =
        each_row(x, n, [&](auto row) { return reference::rms_norm(row, weight, 1e-5f); });
    ASSERT_TRUE(same_bits(expected, get(*out)));
  });
}

TEST_P(DeviceOps, LayerNorm) {
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> weight = random_.floats(n, 2.0f), bias = random_.floats(n);
    const auto in = put(x), w = put(weight), b = put(bias), out = put(nans(rows * n));
    device_->normalise(*stream_, {n, w->as<float>(), b->as<float>(), 1e-5f}, in->as<float>(), rows,
                       out->as<float>());
    const auto expected =
        each_row(x, n, [&](auto row) { return reference::layer_norm(row, weight, bias, 1e-5f); });
    ASSERT_TRUE(same_bits(expected, get(*out)));
  });
}

TEST_P(DeviceOps, Elements) {
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> y = random_.floats(rows * n);
    std::vector<float> sum = x, positive = x;
    for (size_t i = 0; i < x.size(); ++i) {
      sum[i] = x[i] + y[i];
      positive[i] = reference::relu(x[i]);
    }
    const auto other = put(y), added = put(x), rectified = put(x);
    device_->add(*stream_, added->as<float>(), other->as<float>(), rows, n);
    device_->relu(*stream_, rectified->as<float>(), rows, n);
    ASSERT_TRUE(same_bits(sum, get(*added)));
    ASSERT_TRUE(same_bits(positive, get(*rectified)));
  });
}

// For tools that look at every access.
TEST_P(DeviceOps, SmallRows) {
  constexpr int64_t kCount = 3;
  for (const int64_t n : {17, 64, 13000}) {
    const auto x = random_.floats(kCount * n), weight = random_.floats(n), bias = random_.floats(n);
    const auto in = put(x), w = put(weight), b = put(bias), out = put(nans(kCount * n));
    for (const bool is_layer : {false, true}) {
      device_->normalise(*stream_, {n, w->as<float>(), is_layer ? b->as<float>() : nullptr, 1e-5f},
                         in->as<float>(), kCount, out->as<float>());
      const auto expected = each_row(x, n, [&](auto row) {
        return is_layer ? reference::layer_norm(row, weight, bias, 1e-5f)
                        : reference::rms_norm(row, weight, 1e-5f);
      });
      ASSERT_TRUE(same_bits(expected, get(*out)));
    }
    device_->add(*stream_, out->as<float>(), in->as<float>(), kCount, n);
    device_->relu(*stream_, out->as<float>(), kCount, n);
    for (const float value : get(*out)) ASSERT_GE(value, 0.0f);
  }
}

TEST_P(DeviceOps, Rope) {
  for (const int head_dim : {16, 64, 80, 128}) {
    for (const int heads : {1, 3, 14}) {
      for (const int64_t rows : kRows) {
        SCOPED_TRACE(testing::Message() << rows << " rows, " << heads << " x " << head_dim);
        const int64_t half = head_dim / 2;
        const auto cos = random_.floats(rows * half), sin = random_.floats(rows * half);
        const auto x = random_.floats(rows * heads * head_dim, 4.0f);
        const auto c = put(cos), s = put(sin), rotated = put(x);
        device_->apply_rope(*stream_, c->as<float>(), s->as<float>(), rotated->as<float>(), rows,
                            heads, head_dim);
        std::vector<float> expected = x;
        for (int64_t head = 0; head < rows * heads; ++head) {
          const auto table = static_cast<size_t>(head / heads * half);
          reference::rotate(std::span(expected).subspan(static_cast<size_t>(head * head_dim),
                                                        static_cast<size_t>(head_dim)),
                            std::span(cos).subspan(table, static_cast<size_t>(half)),
                            std::span(sin).subspan(table, static_cast<size_t>(half)));
        }
        ASSERT_TRUE(same_bits(expected, get(*rotated)));
      }
    }
  }
}

// Panels in two calls and in two places.
void DeviceOps::check_linear(DType dtype, int64_t rows) {
  const int64_t cols = dtype_info(dtype).block_elements == 1 ? 129 : 512, outputs = 97;
  SCOPED_TRACE(testing::Message() << dtype_name(dtype) << ", " << rows << " rows");
  const Weights w = random_weights(dtype, outputs, cols, random_.bits());
  const size_t panel_bytes = w.view().panel_bytes();
  const auto whole = put_bytes(w.panels);
  const auto rest = put_bytes(std::span(w.panels).subspan(2 * panel_bytes));
  const PackedMatrix matrix{dtype, outputs, cols, whole->data(), 2, rest->data()};
  const auto x = random_.floats(rows * cols), bias = random_.floats(outputs);
  const auto before = random_.floats(rows * outputs, 3.0f);
  std::vector<float> expected = nans(rows * outputs), gated = expected;
  reference::linear(x.data(), rows, cols, w.floats.data(), outputs, bias.data(), expected.data());
  for (size_t i = 0; i < gated.size(); ++i) gated[i] = expected[i] * reference::silu(before[i]);
  const auto in = put(x), b = put(bias), y = put(nans(rows * outputs)), gate = put(before);
  for (const auto& [first, end] : {std::pair(0, 1), std::pair(1, 4)}) {
    device_->linear_panels(*stream_, in->as<float>(), rows, matrix, b->as<float>(), first, end,
                           y->as<float>());
    device_->gate_panels(*stream_, in->as<float>(), rows, matrix, b->as<float>(), first, end,
                         gate->as<float>());
  }
  ASSERT_TRUE(same_bits(expected, get(*y)));
  ASSERT_TRUE(same_bits(gated, get(*gate)));
}

TEST_P(DeviceOps, Linear) {
  for (const DType dtype : all_dtypes()) {
    for (const int64_t rows : kRows) check_linear(dtype, rows);
  }
}

// For tools that look at every access.
TEST_P(DeviceOps, SmallLinear) {
  for (const DType dtype : all_dtypes()) check_linear(dtype, 3);
}

// A ragged batch over pages in the memory of the device, and the same on the CPU: prompts of these
// lengths, then `more` tokens of each.
void DeviceOps::check_attention(KvFormat format, int head_dim, const std::vector<int64_t>& lengths,
                                const std::vector<int64_t>& more) {
  constexpr int kKvHeads = 2, kHeads = 6;
  constexpr float kScale = 0.125f;
  SCOPED_TRACE(testing::Message() << kv_format_name(format) << ", " << head_dim << " wide");
  ThreadPool threads(1, 0);
  const Cpu cpu{threads, kernels(Target::kScalar)};
  const KvPageShape shape{kKvHeads, head_dim, format};
  const size_t stride = shape.page_bytes();
  std::vector<size_t> first_pages;
  size_t pages = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    first_pages.push_back(pages);
    pages += static_cast<size_t>((lengths[i] + more[i] + kPageTokens - 1) / kPageTokens);
  }
  std::vector<std::byte> memory(pages * stride, std::byte{0xFF});
  const auto device_memory = put_bytes(memory);
  std::vector<std::byte*> table, device_table;
  for (size_t i = 0; i < pages; ++i) {
    table.push_back(memory.data() + i * stride);
    device_table.push_back(device_memory->data() + i * stride);
  }
  const auto tables = put_bytes(std::as_bytes(std::span(device_table)));
  for (const bool is_prompt : {true, false}) {
    std::vector<AttentionSequence> sequences, device_sequences;
    int64_t rows = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int64_t count = is_prompt ? lengths[i] : more[i];
      sequences.push_back({rows, count, is_prompt ? 0 : lengths[i], table.data() + first_pages[i]});
      device_sequences.push_back(sequences.back());
      device_sequences.back().pages = tables->as<std::byte*>() + first_pages[i];
      rows += count;
    }
    const int64_t most_rows =
        *std::max_element((is_prompt ? lengths : more).begin(), (is_prompt ? lengths : more).end());
    const auto k = random_.floats(rows * kKvHeads * head_dim, 2.0f);
    const auto v = random_.floats(rows * kKvHeads * head_dim, 2.0f);
    const auto q = random_.floats(rows * kHeads * head_dim, 3.0f);
    std::vector<float> expected = nans(std::ssize(q));
    store_kv(cpu, shape, sequences, k.data(), v.data());
    attention(cpu, shape, sequences, kHeads, kScale, q.data(), expected.data());
    const auto list = put_bytes(std::as_bytes(std::span(device_sequences)));
    const auto count = std::ssize(sequences);
    const auto device_k = put(k), device_v = put(v), device_q = put(q);
    const auto out = put(nans(std::ssize(q)));
    device_->store_kv(*stream_, shape, list->as<AttentionSequence>(), count, most_rows,
                      device_k->as<float>(), device_v->as<float>());
    device_->attention(*stream_, shape, list->as<AttentionSequence>(), count, most_rows, kHeads,
                       kScale, device_q->as<float>(), out->as<float>());
    ASSERT_TRUE(same_bits(expected, get(*out))) << (is_prompt ? "prompt" : "more");
    std::vector<std::byte> stored(memory.size());
    device_->copy_out(*stream_, stored, device_memory->data());
    stream_->synchronize();
    ASSERT_EQ(memory, stored);
  }
}

constexpr KvFormat kKvFormats[] = {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4};

TEST_P(DeviceOps, Attention) {
  for (const KvFormat format : kKvFormats) {
    for (const int head_dim : {64, 80, 128}) {
      check_attention(format, head_dim, {1, 15, 16, 33, 130, 257}, {1, 2, 1, 3, 40, 7});
    }
  }
}

TEST_P(DeviceOps, SmallAttention) {
  for (const KvFormat format : kKvFormats) check_attention(format, 64, {1, 16, 33}, {1, 1, 17});
}

INSTANTIATE_TEST_SUITE_P(On, DeviceOps, testing::Values(test::Kind::kFake, test::Kind::kGpu),
                         [](const auto& on) { return test::name_of(on); });

class GpuOps : public DeviceOps {};

TEST_P(GpuOps, RowsThatAreTooLongAreRefused) {
  const int64_t n = 1 << 20;
  const auto x = put(std::vector<float>(n)), y = put(nans(n));
  EXPECT_THROW(device_->normalise(*stream_, {n, x->as<float>(), nullptr, 1e-5f}, x->as<float>(), 1,
                                  y->as<float>()),
               DoesNotFit);
}

INSTANTIATE_TEST_SUITE_P(On, GpuOps, testing::Values(test::Kind::kGpu),
                         [](const auto& on) { return test::name_of(on); });

}  // namespace
}  // namespace headrace
