// Ops on a GPU against the plain definitions: the same bits, in odd shapes, outputs poisoned
// before. Skipped where there is no GPU; tests/ops/row_blocks_test.cpp runs the same programs on
// the CPU.

#include <cstring>

#include "engine/device/device_module.h"
#include "engine/error.h"
#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

constexpr int64_t kWidths[] = {1, 17, 64, 576, 896, 4097, 13000};  // the last: more than 48 KiB
constexpr int64_t kRows[] = {1, 3, 7, 33, 257};

class DeviceOps : public testing::Test {
 protected:
  void SetUp() override {
    try {
      module_ = open_device_module(CUDA_MODULE);
      module_->count();
    } catch (const ResourceMissing& e) {
      GTEST_SKIP() << e.what();
    }
    device_ = module_->open(0);
    stream_ = device_->make_stream();
  }

  std::unique_ptr<DeviceBuffer> put(const std::vector<float>& values) {
    auto buffer = device_->allocate(values.size() * sizeof(float));
    device_->copy_in(*stream_, buffer->data(), std::as_bytes(std::span(values)));
    stream_->synchronize();
    return buffer;
  }

  std::vector<float> get(DeviceBuffer& buffer) {
    std::vector<float> values(buffer.size() / sizeof(float));
    device_->copy_out(*stream_, std::as_writable_bytes(std::span(values)), buffer.data());
    stream_->synchronize();
    return values;
  }

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

  Random random_{7};
  std::unique_ptr<DeviceModule> module_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceStream> stream_;
};

TEST_F(DeviceOps, RmsNorm) {
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> weight = random_.floats(n, 2.0f);
    const auto in = put(x), w = put(weight), out = put(nans(rows * n));
    device_->rms_norm(*stream_, in->as<float>(), rows, n, w->as<float>(), 1e-5f, out->as<float>());
    const auto expected =
        each_row(x, n, [&](auto row) { return reference::rms_norm(row, weight, 1e-5f); });
    ASSERT_TRUE(same_bits(expected, get(*out)));
  });
}

TEST_F(DeviceOps, LayerNorm) {
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> weight = random_.floats(n, 2.0f), bias = random_.floats(n);
    const auto in = put(x), w = put(weight), b = put(bias), out = put(nans(rows * n));
    device_->layer_norm(*stream_, in->as<float>(), rows, n, w->as<float>(), b->as<float>(), 1e-5f,
                        out->as<float>());
    const auto expected =
        each_row(x, n, [&](auto row) { return reference::layer_norm(row, weight, bias, 1e-5f); });
    ASSERT_TRUE(same_bits(expected, get(*out)));
  });
}

TEST_F(DeviceOps, Elements) {
  for_shapes([&](int64_t rows, int64_t n, const std::vector<float>& x) {
    const std::vector<float> y = random_.floats(rows * n);
    std::vector<float> sum = x, positive = x, product = x;
    for (size_t i = 0; i < x.size(); ++i) {
      sum[i] = x[i] + y[i];
      positive[i] = reference::relu(x[i]);
      product[i] = reference::silu(x[i]) * y[i];
    }
    const auto other = put(y), added = put(x), rectified = put(x), gate = put(x);
    device_->add(*stream_, added->as<float>(), other->as<float>(), rows, n);
    device_->relu(*stream_, rectified->as<float>(), rows, n);
    device_->silu_multiply(*stream_, gate->as<float>(), other->as<float>(), rows, n);
    ASSERT_TRUE(same_bits(sum, get(*added)));
    ASSERT_TRUE(same_bits(positive, get(*rectified)));
    ASSERT_TRUE(same_bits(product, get(*gate)));
  });
}

TEST_F(DeviceOps, Rope) {
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

TEST_F(DeviceOps, RowsThatAreTooLongAreRefused) {
  const int64_t n = 1 << 20;
  const auto x = put(std::vector<float>(n)), y = put(nans(n));
  EXPECT_THROW(
      device_->rms_norm(*stream_, x->as<float>(), 1, n, x->as<float>(), 1e-5f, y->as<float>()),
      DoesNotFit);
}

}  // namespace
}  // namespace headrace
