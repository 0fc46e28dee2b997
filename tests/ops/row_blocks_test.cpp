// The GPU's row programs, run on the CPU block by block, against the plain definitions: the same
// bits, whatever the number and order of threads.

#include "engine/ops/cuda/row_blocks.h"

#include "tests/ops/host_block.h"
#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

constexpr int64_t kWidths[] = {1, 5, 16, 17, 63, 64, 576, 896, 4097};
constexpr float kMagnitudes[] = {1.0f, 1e-30f, 1e-12f, 1e5f, 1e15f};

// Calls f(block, x) for all widths, magnitudes and blocks; every 7th element is -0.
template <typename F>
void for_blocks(F f) {
  Random random(1);
  for (const int64_t n : kWidths) {
    for (const float magnitude : kMagnitudes) {
      std::vector<float> x = random.floats(n, magnitude);
      for (size_t i = 3; i < x.size(); i += 7) x[i] = -0.0f;
      for (const int threads : {16, 32, 256}) {
        SCOPED_TRACE(testing::Message() << n << " wide, " << threads << " threads");
        HostBlock block(threads, random.bits());
        f(block, x);
      }
    }
  }
}

TEST(RowBlocks, RmsNorm) {
  Random random(2);
  for_blocks([&](HostBlock& block, const std::vector<float>& x) {
    const std::vector<float> weight = random.floats(std::ssize(x), 2.0f);
    const std::vector<float> expected = reference::rms_norm(x, weight, 1e-5f);
    std::vector<float> y = x;  // in place
    rms_norm_row(block, y.data(), std::ssize(x), weight.data(), 1e-5f, y.data());
    ASSERT_TRUE(same_bits(expected, y));
    EXPECT_EQ(block.shared_bytes(), sizeof(float) * norm_shared_floats(std::ssize(x)));
  });
}

TEST(RowBlocks, LayerNorm) {
  Random random(3);
  for_blocks([&](HostBlock& block, const std::vector<float>& x) {
    const std::vector<float> weight = random.floats(std::ssize(x), 2.0f);
    const std::vector<float> bias = random.floats(std::ssize(x));
    const std::vector<float> expected = reference::layer_norm(x, weight, bias, 1e-5f);
    std::vector<float> y = x;
    layer_norm_row(block, y.data(), std::ssize(x), weight.data(), bias.data(), 1e-5f, y.data());
    ASSERT_TRUE(same_bits(expected, y));
    EXPECT_EQ(block.shared_bytes(), sizeof(float) * norm_shared_floats(std::ssize(x)));
  });
}

TEST(RowBlocks, Elements) {
  Random random(4);
  for (const float x : {-0.0f, 0.0f, kNan, kInf, -kInf, 1e-45f, -3.5f, 88.5f, -90.0f}) {
    EXPECT_TRUE(same_bits(reference::relu(x), relu_of(x)));
    EXPECT_TRUE(same_bits(reference::silu(x) * 0.75f, silu_multiply_of(x, 0.75f)));
  }
  for (int i = 0; i < 10000; ++i) {
    const float gate = random.unit() * 20.0f, up = random.unit();
    EXPECT_TRUE(same_bits(reference::silu(gate) * up, silu_multiply_of(gate, up)));
  }
}

TEST(RowBlocks, Rotation) {
  Random random(5);
  for (const int half : {1, 8, 32, 40, 64}) {
    const std::vector<float> cos = random.floats(half), sin = random.floats(half);
    const std::vector<float> head = random.floats(2 * half, 4.0f);
    std::vector<float> expected = head, got = head;
    reference::rotate(expected, cos, sin);
    const auto at = [](const std::vector<float>& v, int i) { return v[static_cast<size_t>(i)]; };
    for (int i = half; i-- > 0;) rotate_pair(got.data(), half, i, at(cos, i), at(sin, i));
    ASSERT_TRUE(same_bits(expected, got));
  }
}

}  // namespace
}  // namespace headrace
