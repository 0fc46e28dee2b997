// Products that are done at once where they lie evenly apart, on a device without hardware.
#include "engine/device/half_ops.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"

namespace headrace {
namespace {

constexpr int64_t kRows = 5, kOutputs = 64, kInputs = 48, kMostRows = 8;

class ProductsAtOnce : public testing::Test {
 protected:
  ProductsAtOnce() {
    for (int i = 0; i < 3; ++i) {
      PackedMatrix w{DType::kF16, kOutputs, kInputs, at<std::byte>(*weights_, i * kWeightBytes)};
      w.half_rows = true;
      all_.push_back({w, at<float>(*biases_, i * kBiasBytes), at<float>(*results_, i * kApart)});
    }
    fill<Half>(*x_, [&] { return to_half(random_.floats(1)[0]); });
    fill<Half>(*weights_, [&] { return to_half(random_.floats(1)[0]); });
    fill<float>(*biases_, [&] { return random_.floats(1)[0]; });
  }

  template <typename T>
  static T* at(DeviceBuffer& buffer, int64_t bytes) {
    return reinterpret_cast<T*>(buffer.data() + bytes);
  }

  template <typename T, typename F>
  void fill(DeviceBuffer& buffer, F value) {
    std::vector<T> host(buffer.size() / sizeof(T));
    for (T& element : host) element = value();
    device_.copy_in(*stream_, buffer.data(), std::as_bytes(std::span(host)));
    stream_->synchronize();
  }

  static HalfOps::Sizes sizes() {
    HalfOps::Sizes sizes;
    sizes.step_rows = sizes.hidden_rows = sizes.sequences = kMostRows;
    sizes.width = kOutputs;
    sizes.pages = 1;
    return sizes;
  }

  const Operand* x() { return reinterpret_cast<const Operand*>(x_->data()); }

  std::vector<float> results() {
    std::vector<float> host(results_->size() / sizeof(float));
    device_.copy_out(*stream_, std::as_writable_bytes(std::span(host)), results_->data());
    stream_->synchronize();
    return host;
  }

  static constexpr int64_t kWeightBytes = kOutputs * kInputs * 2, kBiasBytes = kOutputs * 4 + 64,
                           kApart = kMostRows * kOutputs * 4;
  Random random_{4};
  test::FakeDevice device_{17};
  std::unique_ptr<DeviceStream> stream_ = device_.make_stream();
  HalfOps ops_{device_, *stream_, sizes(), {}};
  std::unique_ptr<DeviceBuffer> x_ = device_.allocate(kRows * kInputs * 2),
                                weights_ = device_.allocate(3 * kWeightBytes),
                                biases_ = device_.allocate(3 * kBiasBytes),
                                results_ = device_.allocate(4 * kApart);
  std::vector<Projection> all_;
};

TEST_F(ProductsAtOnce, AreThoseOfEach) {
  for (const bool has_bias : {true, false}) {
    for (Projection& p : all_) p.bias = has_bias ? p.bias : nullptr;
    fill<float>(*results_, [] { return -7.0f; });
    ASSERT_TRUE(ops_.linear_together(x(), kRows, all_));
    const std::vector<float> at_once = results();
    fill<float>(*results_, [] { return -7.0f; });
    for (const Projection& p : all_) {
      ops_.linear_panels(x(), kRows, p.weight, p.bias, 0, p.weight.panel_count(), p.y);
    }
    EXPECT_TRUE(same_bits(results(), at_once));
  }
}

TEST_F(ProductsAtOnce, NotWhereSomethingIsDifferent) {
  fill<float>(*results_, [] { return -7.0f; });
  const std::vector<float> before = results();
  const auto expect_refused = [&](const char* what, auto change) {
    std::vector<Projection> all = all_;
    change(all);
    EXPECT_FALSE(ops_.linear_together(x(), kRows, all)) << what;
    EXPECT_TRUE(same_bits(before, results())) << what;
  };
  expect_refused("panels", [](auto& all) { all[1].weight.half_rows = false; });
  expect_refused("rows", [](auto& all) { all[2].weight.rows -= 32; });
  expect_refused("columns", [](auto& all) { all[2].weight.cols -= 16; });
  expect_refused("in two pieces", [](auto& all) { all[0].weight.split = 1; });
  expect_refused("weights elsewhere", [](auto& all) { all[2].weight.panels += 64; });
  expect_refused("no bias", [](auto& all) { all[1].bias = nullptr; });
  expect_refused("a bias elsewhere", [](auto& all) { all[2].bias += 16; });
  expect_refused("results elsewhere", [](auto& all) { all[2].y += kOutputs; });
}

// Low-bit weights, which need not be of one format.
TEST_F(ProductsAtOnce, AreThoseOfEachWithPackedWeights) {
  constexpr int64_t kColumns = 32;  // as if rows of x had no more
  std::vector<std::unique_ptr<DeviceBuffer>> panels;
  for (size_t i = 0; i < all_.size(); ++i) {
    const DType format = i == 1 ? DType::kQ4_0 : DType::kQ8_0;
    const Weights w = random_weights(format, kOutputs - 20 * static_cast<int64_t>(i), kColumns, i);
    panels.push_back(device_.allocate(w.panels.size()));
    device_.copy_in(*stream_, panels.back()->data(), w.panels);
    stream_->synchronize();
    all_[i].weight = {format, w.rows, w.cols, panels.back()->data()};
  }
  const auto room = device_.allocate(kOutputs * kColumns * sizeof(Half));
  HalfOps ops(device_, *stream_, sizes(), {room->data(), room->size()});
  fill<float>(*results_, [] { return -7.0f; });
  ASSERT_TRUE(ops.linear_together(x(), kRows, all_));
  const std::vector<float> at_once = results();
  fill<float>(*results_, [] { return -7.0f; });
  for (const Projection& p : all_) {
    ops.linear_panels(x(), kRows, p.weight, p.bias, 0, p.weight.panel_count(), p.y);
  }
  EXPECT_TRUE(same_bits(results(), at_once));

  HalfOps small(device_, *stream_, sizes(), {room->data(), room->size() - sizeof(Half)});
  EXPECT_FALSE(small.linear_together(x(), kRows, all_)) << "no room for the first";
  all_[2].weight.half_rows = true;
  EXPECT_FALSE(ops.linear_together(x(), kRows, all_)) << "one that is expanded";
  EXPECT_TRUE(same_bits(results(), at_once)) << "nothing was done";
}

}  // namespace
}  // namespace headrace
