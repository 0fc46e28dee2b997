#include "runtime/pipeline/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>

#include "runtime/schedule/stream_key.h"

namespace headrace {
namespace {

// The philox4x32 lines with 10 rounds of Random123's published known answers (kat_vectors).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The bits that a seed, stream and index have always given: another number would change every
// sampled answer.
TEST(Uniform, IsThePublishedFunctionOfSeedStreamAndIndex) {
  EXPECT_EQ(uniform(0, 0, 0), static_cast<double>(0x6627e8d5e169c58dull >> 11) * 0x1p-53);
  EXPECT_EQ(uniform(0x299f31d0a4093822ull, 0x0370734413198a2eull, 0x85a308d3243f6a88ull),
            static_cast<double>(0xd16cfe0994fdccebull >> 11) * 0x1p-53);
}

TEST(Uniform, LiesInItsRangeAndIsEven) {
  constexpr int kDraws = 100000, kCells = 64;
  std::array<int, kCells> cells{};
  double sum = 0.0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = uniform(7, 99, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    ++cells[static_cast<size_t>(u * kCells)];
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);
  double chi_square = 0.0;
  for (const int count : cells) {
    const double expected = static_cast<double>(kDraws) / kCells;
    chi_square += (count - expected) * (count - expected) / expected;
  }
  EXPECT_LT(chi_square, 63 + 5 * std::sqrt(2.0 * 63));
}

TEST(Uniform, EveryArgumentCounts) {
  std::set<double> values;
  int drawn = 0;
  for (const uint64_t seed : {0ull, 1ull, 1ull << 32, 1ull << 63}) {
    for (const uint64_t stream : {0ull, 1ull, 1ull << 32, 1ull << 63}) {
      for (const uint64_t index : {0ull, 1ull, 2ull, 1ull << 32}) {
        values.insert(uniform(seed, stream, index));
        ++drawn;
      }
    }
  }
  EXPECT_EQ(std::ssize(values), drawn);
}

// Requests whose ids differ in little, each with several choices: no two streams are the same.
TEST(StreamKey, DependsOnIdAndChoice) {
  std::set<uint64_t> keys;
  int made = 0;
  for (const char* prefix : {"", "r", "0.", "req-", "request-", "a-rather-long-request-name-"}) {
    for (int i = 0; i < 3000; ++i) {
      for (int choice = 0; choice < 8; ++choice) {
        keys.insert(stream_key(prefix + std::to_string(i), choice));
        ++made;
      }
    }
  }
  EXPECT_EQ(std::ssize(keys), made);
}

// Recorded: another value would change every sampled answer.
TEST(StreamKey, StaysAsItIs) {
  EXPECT_EQ(stream_key("request-1", 0), 0xCFE7F516D3CFCBB5ull);
  EXPECT_EQ(stream_key("request-1", 2), 0x5E0AAC745D8F9B42ull);
}

}  // namespace
}  // namespace headrace
