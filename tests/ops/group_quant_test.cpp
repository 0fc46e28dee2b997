// Quantisation of groups: the bits of the plain definition, and what it promises.

#include "engine/group_quant.h"

#include <algorithm>
#include <array>

#include "engine/half.h"
#include "tests/ops/op_test.h"
#include "tests/reference/dequantize.h"
#include "tests/reference/quantize.h"

namespace headrace {
namespace {

struct Quantised {
  explicit Quantised(std::span<const float> x, int most) : levels(most), codes(x.size() + 1, 0xAB) {
    scale = quantize_group(x.data(), static_cast<int>(x.size()), levels, codes.data());
    EXPECT_EQ(codes.back(), 0xAB) << "wrote past the end";
    codes.pop_back();
    for (const uint8_t q : codes) {
      const float scaled = d() * static_cast<float>(q);
      values.push_back(scaled + m());
    }
  }
  float d() const { return f16_to_f32(scale.scale); }
  float m() const { return f16_to_f32(scale.minimum); }

  int levels;
  GroupScale scale;
  std::vector<uint8_t> codes;
  std::vector<float> values;  // as they are read back
};

// Groups of every kind: sizes, ranges from nothing to all of float, far from 0, few values.
std::vector<float> random_group(Random& random) {
  std::vector<float> x = random.floats(1 + random.below(64));
  constexpr float kScales[] = {1.0f, 0.02f, 1e-4f, 1e-6f, 1e-7f, 1e-9f, 1e-42f, 3e4f, 1e6f, 3e38f};
  const float scale = kScales[random.below(10)];
  constexpr float kOffsets[] = {0.0f, 0.0f, 1.0f, -30.0f, 1e4f, -65504.0f, 7e4f, -1e-5f};
  const float offset = kOffsets[random.below(8)];
  const bool steps = random.below(4) == 0, constant = random.below(8) == 0;
  for (float& v : x) {
    if (steps) v = std::nearbyint(v * 2.0f);
    v = (constant ? x[0] : v) * scale + offset;
    if (!std::isfinite(v)) v = 3e38f;
  }
  if (random.below(8) == 0) x[static_cast<size_t>(random.below(std::ssize(x)))] = -0.0f;
  return x;
}

TEST(GroupQuant, EqualsTheReferenceBitForBit) {
  Random random(61);
  for (int round = 0; round < 200000; ++round) {
    std::vector<float> x = random_group(random);
    if (round % 50 == 0) x[static_cast<size_t>(random.below(std::ssize(x)))] = kNan;
    for (const int levels : {255, 15}) {
      const Quantised got(x, levels);
      const reference::Group expected = reference::quantize(x, levels);
      ASSERT_EQ(got.scale.scale, std::bit_cast<uint16_t>(expected.scale)) << round;
      ASSERT_EQ(got.scale.minimum, std::bit_cast<uint16_t>(expected.minimum)) << round;
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(got.codes[i], expected.codes[i]) << round << ", element " << i;
        ASSERT_TRUE(same_bits(expected.value(i), got.values[i]));
      }
    }
  }
}

TEST(GroupQuant, AnElementIsOffByAtMostHalfAStepAndTheRoundingOfTheMinimum) {
  Random random(62);
  for (int round = 0; round < 100000; ++round) {
    const std::vector<float> x = random_group(random);
    const auto [lo, hi] = std::minmax_element(x.begin(), x.end());
    if (*lo < -kF16Max || *hi > kF16Max) continue;
    for (const int levels : {255, 15}) {
      const Quantised got(x, levels);
      // A step no larger than needed, so that half of one means something.
      const float step = (*hi - got.m()) / static_cast<float>(levels);
      ASSERT_LE(got.d(), std::max(0.0f, step) * (1.0f + 0x1p-10f) + 0x1p-24f);
      const float minimum_error = std::abs(got.m() - *lo);
      ASSERT_LE(minimum_error, std::abs(*lo) * 0x1p-11f + 0x1p-25f);
      for (size_t i = 0; i < x.size(); ++i) {
        const float float_error = (std::abs(x[i]) + std::abs(got.m())) * 0x1p-22f;
        ASSERT_LE(std::abs(got.values[i] - x[i]), got.d() / 2 + minimum_error + float_error)
            << "round " << round << ", element " << i << ": " << x[i] << " in [" << *lo << ", "
            << *hi << "] became " << got.values[i];
      }
    }
  }
}

TEST(GroupQuant, ConstantGroupsAreAsExactAsF16) {
  Random random(63);
  std::vector<float> constants = {0.0f,   -0.0f, 1.0f,    -2.5f,   1e-8f,
                                  -1e-8f, 6e-8f, kF16Max, -kF16Max};
  for (int i = 0; i < 1000; ++i) constants.push_back(random.unit() * 100.0f);
  for (const float c : constants) {
    const float as_f16 = f16_to_f32(f32_to_f16(c));
    for (const int levels : {255, 15}) {
      const std::vector<float> x(64, c);
      for (const float value : Quantised(x, levels).values) {
        ASSERT_LE(std::abs(value - c), std::abs(as_f16 - c)) << c;
        ASSERT_TRUE(value == c || as_f16 != c) << c;
        ASSERT_FALSE(value == 0.0f && std::signbit(value)) << "-0";
      }
    }
  }
}

// Where the range is not tiny beside the minimum, so that the codes reach from 0 to the last.
TEST(GroupQuant, QuantisingAgainChangesNothing) {
  Random random(64);
  int groups = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::vector<float> x = random_group(random);
    const auto [lo, hi] = std::minmax_element(x.begin(), x.end());
    const float range = *hi - *lo;
    if (std::abs(*lo) > 3 * range || range < 0.02f || *lo < -kF16Max || *hi > kF16Max) continue;
    ++groups;
    for (const int levels : {255, 15}) {
      const Quantised once(x, levels), twice(once.values, levels);
      ASSERT_EQ(once.scale.scale, twice.scale.scale) << round;
      ASSERT_EQ(once.scale.minimum, twice.scale.minimum) << round;
      ASSERT_EQ(once.codes, twice.codes) << round;
    }
  }
  EXPECT_GT(groups, 3000);
}

TEST(GroupQuant, ValuesBeyondF16StayFinite) {
  const std::vector<std::vector<float>> groups = {
      {70000.0f}, {-70000.0f, -70000.0f}, {-3e38f, 3e38f}, {0.0f, 3.4e38f}, {-3.4e38f, -3.3e38f}};
  for (const std::vector<float>& x : groups) {
    for (const int levels : {255, 15}) {
      for (const float value : Quantised(x, levels).values) EXPECT_TRUE(std::isfinite(value));
    }
  }
  EXPECT_NEAR(Quantised(groups[0], 255).values[0], 70000.0f, 16.0f);  // the minimum is 65504
  EXPECT_EQ(Quantised(groups[1], 255).values[0], -kF16Max);
  EXPECT_EQ(Quantised(groups[2], 15).values, (std::vector{-kF16Max, 14 * kF16Max}));
}

TEST(GroupQuant, ARangeBelowTheLeastF16IsNotLost) {
  std::vector<float> x;
  for (int i = 0; i < 64; ++i) x.push_back(static_cast<float>(i) * 1e-8f);
  for (const int levels : {255, 15}) {
    const Quantised got(x, levels);
    EXPECT_EQ(got.scale.scale, 1) << "2^-24";
    for (size_t i = 0; i < x.size(); ++i) EXPECT_LE(std::abs(got.values[i] - x[i]), 0x1p-25f);
  }
}

TEST(GroupQuant, BlocksAreStoredAsTheReferenceStoresThem) {
  Random random(65);
  for (int round = 0; round < 2000; ++round) {
    std::vector<float> x = random.floats(kQuantGroup);
    for (const DType dtype : {DType::kG8, DType::kG4}) {
      std::vector<std::byte> block(static_cast<size_t>(dtype_info(dtype).block_bytes));
      quantize_block(std::span<const float, kQuantGroup>(x.data(), kQuantGroup),
                     dtype == DType::kG8 ? 8 : 4, block.data());
      ASSERT_EQ(block, reference::quantize_row(dtype, x));
      std::array<float, kQuantGroup> back;
      reference::dequantize_row(dtype, block.data(), kQuantGroup, back.data());
      const Quantised expected(x, dtype == DType::kG8 ? 255 : 15);
      ASSERT_TRUE(same_bits(expected.values, back));
    }
  }
}

}  // namespace
}  // namespace headrace
