// Rotary embedding: frequencies against transformers, angles against long double, rotation against
// the plain definition.

#include "engine/ops/rope.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

// Steps between two floats, for numbers of equal sign.
int64_t ulps_between(float a, float b) {
  return std::abs(int64_t{std::bit_cast<int32_t>(a)} - std::bit_cast<int32_t>(b));
}

Rope rope_of(const nlohmann::json& c) {
  Rope rope;
  rope.theta = c.at("theta");
  const std::string type = c.at("rope_type");
  if (type == "default") return rope;
  rope.factor = c.at("factor");
  rope.scaling = Rope::Scaling::kLinear;
  if (type == "linear") return rope;
  rope.scaling = Rope::Scaling::kLlama3;
  rope.low_freq_factor = c.at("low_freq_factor");
  rope.high_freq_factor = c.at("high_freq_factor");
  rope.original_max_positions = c.at("original_max_position_embeddings");
  return rope;
}

nlohmann::json goldens() {
  std::ifstream file(HEADRACE_TEST_DATA "/ops/rope_frequencies.json");
  return nlohmann::json::parse(file);
}

TEST(RopeFrequencies, EqualTransformersBitForBit) {
  int cases = 0;
  for (const nlohmann::json& c : goldens()) {
    SCOPED_TRACE(c.at("name"));
    const std::vector<float> expected = c.at("frequencies");
    const std::vector<float> got = rope_frequencies(rope_of(c), c.at("head_dim"));
    EXPECT_TRUE(same_bits(expected, got));
    ++cases;
  }
  EXPECT_EQ(cases, 8);
}

// Llama-3 scaling as GGUF files carry it, one divisor per frequency.
TEST(RopeFrequencies, DivisorsGiveTheSameAsTheFormula) {
  Rope formula;
  formula.theta = 500000.0;
  formula.scaling = Rope::Scaling::kLlama3;
  formula.factor = 8.0;
  formula.original_max_positions = 8192;
  Rope divisors;
  divisors.theta = 500000.0;
  const std::vector<float> plain = rope_frequencies(divisors, 128);
  const std::vector<float> scaled = rope_frequencies(formula, 128);
  for (size_t i = 0; i < plain.size(); ++i) {
    divisors.frequency_divisors.push_back(plain[i] / scaled[i]);
  }
  EXPECT_EQ(divisors.frequency_divisors.front(), 1.0f);
  EXPECT_EQ(divisors.frequency_divisors.back(), 8.0f);
  const std::vector<float> divided = rope_frequencies(divisors, 128);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_LE(ulps_between(divided[i], scaled[i]), 1);
}

// The largest absolute error of both functions over many angles in [0, limit), both signs.
double worst_error(double limit) {
  Random random(31);
  double worst = 0;
  const auto check = [&](double x) {
    for (const double angle : {x, -x}) {
      const long double sin = sinl(angle), cos = cosl(angle);
      worst = std::max(worst, static_cast<double>(fabsl(canonical_sin(angle) - sin)));
      worst = std::max(worst, static_cast<double>(fabsl(canonical_cos(angle) - cos)));
    }
  };
  for (int i = 0; i < 400000; ++i) {
    const double u = static_cast<double>(random.bits() >> 11) * 0x1p-53;
    check(u * limit);
    check(static_cast<float>(std::exp2(u * 60.0 - 60.0) * limit));  // every magnitude
  }
  // Next to multiples of pi/2, where the reduction cancels most.
  for (double n = 0; n < limit / 1.5707963267948966; n += 1 + std::floor(n / 30000)) {
    check(static_cast<double>(n * 1.57079632679489661923L));
    check(static_cast<float>(n * 1.57079632679489661923L));
  }
  return worst;
}

TEST(RopeAngles, SinAndCosAreExactToDouble) {
  constexpr double kBound = 2.3e-16;  // measured 2.2e-16: 2 ulp of a double just below 1
  const double worst = worst_error(0x1p20);
  EXPECT_LE(worst, kBound);
  EXPECT_LE(worst_error(0x1p30), 7e-8) << "the reduction is less exact beyond 2^20";
  EXPECT_GT(worst, 1e-17) << "a double cannot be this exact everywhere: the sweep measures nothing";
  EXPECT_EQ(canonical_sin(0.0), 0.0);
  EXPECT_EQ(canonical_cos(0.0), 1.0);
}

using RopeOps = OpTest;

constexpr int kHeadDims[] = {2, 16, 24, 64, 80, 128};

// Angle = position * frequency in float32; cosine and sine in double, rounded once.
TEST_P(RopeOps, TableOfAngles) {
  std::vector<int64_t> positions(50);
  std::iota(positions.begin(), positions.end(), 0);
  positions.insert(positions.end(), {77, 4095, 8191, 100000, 131071, 1048575});
  RopeTable table;  // used again for every size
  for (const int head_dim : kHeadDims) {
    const std::vector<float> frequencies = rope_frequencies(Rope{}, head_dim);
    table.compute(cpu_, frequencies, positions);
    ASSERT_EQ(table.half(), head_dim / 2);
    for (size_t row = 0; row < positions.size(); ++row) {
      for (size_t i = 0; i < frequencies.size(); ++i) {
        const float angle = static_cast<float>(positions[row]) * frequencies[i];
        const float cos = table.cos(static_cast<int64_t>(row))[i];
        const float sin = table.sin(static_cast<int64_t>(row))[i];
        ASSERT_TRUE(same_bits(static_cast<float>(canonical_cos(angle)), cos));
        ASSERT_TRUE(same_bits(static_cast<float>(canonical_sin(angle)), sin));
        ASSERT_NEAR(cos, static_cast<double>(cosl(angle)), 0x1.001p-25);  // half a step below 1
        ASSERT_NEAR(sin, static_cast<double>(sinl(angle)), 0x1.001p-25);
      }
    }
  }
}

TEST_P(RopeOps, ApplyRope) {
  Random random(32);
  std::vector<int64_t> positions;
  for (int i = 0; i < 40; ++i) positions.push_back(random.below(4096));
  for (const int head_dim : kHeadDims) {
    RopeTable table;
    table.compute(cpu_, rope_frequencies(Rope{}, head_dim), positions);
    for (const int heads : {1, 3, 14}) {
      for (const int64_t rows : {1, 7, 8, 33}) {  // from 8 rows on they are spread over threads
        for (const int64_t first : {0, 6}) {
          SCOPED_TRACE(testing::Message() << head_dim << " x " << heads << ", " << rows << " rows");
          std::vector<float> x = random.floats(rows * heads * head_dim, 3.0f);
          x[0] = -0.0f;
          std::vector<float> expected = x;
          for (int64_t i = 0; i < rows * heads; ++i) {
            const int64_t row = first + i / heads;
            const auto half = static_cast<size_t>(table.half());
            reference::rotate({expected.data() + i * head_dim, 2 * half}, {table.cos(row), half},
                              {table.sin(row), half});
          }
          apply_rope(cpu_, table, first, x.data(), rows, heads, head_dim);
          ASSERT_TRUE(same_bits(expected, x));
        }
      }
    }
  }
}

// Half-split: (1, 0) turns to (cos, sin) with its partner half a head further on.
TEST(RopeReference, RotatesCounterClockwise) {
  float v[] = {1.0f, 2.0f, 0.0f, 0.0f};
  const float cos[] = {0.6f, 0.0f}, sin[] = {0.8f, 1.0f};
  reference::rotate(v, cos, sin);
  EXPECT_EQ(v[0], 0.6f);
  EXPECT_EQ(v[2], 0.8f);
  EXPECT_EQ(v[1], 0.0f);
  EXPECT_EQ(v[3], 2.0f);
}

INSTANTIATE_TEST_SUITE_P(, RopeOps, testing::ValuesIn(all_op_configs()), config_name);

}  // namespace
}  // namespace headrace
