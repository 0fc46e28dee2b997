// What the tests of the ops share: targets and threads to run on, random numbers that are the same
// everywhere, and comparison of float bits.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/ops/cpu/cpu.h"

namespace headrace {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInf = std::numeric_limits<float>::infinity();

// A vector target and a number of threads.
struct OpConfig {
  Target target;
  int threads;
};

inline std::vector<OpConfig> all_op_configs() {
  std::vector<OpConfig> configs;
  for (const Target target : supported_targets()) {
    for (const int threads : {1, 2, 3}) configs.push_back({target, threads});
  }
  return configs;
}

inline void PrintTo(Target target, std::ostream* out) { *out << target_name(target); }

inline void PrintTo(const OpConfig& config, std::ostream* out) {
  *out << target_name(config.target) << ", " << config.threads << " threads";
}

inline std::string config_name(const testing::TestParamInfo<OpConfig>& info) {
  return std::string(target_name(info.param.target)) + "_" + std::to_string(info.param.threads);
}

// A test that runs once per target and number of threads.
class OpTest : public testing::TestWithParam<OpConfig> {
 protected:
  ThreadPool threads_{GetParam().threads, 0};
  const Kernels& kernels_ = kernels(GetParam().target);
  Cpu cpu_{threads_, kernels_};
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t bits() { return engine_(); }
  // In [0, n).
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  // In [-1, 1), 24 random bits.
  float unit() { return static_cast<float>(below(1 << 24)) * 0x1p-23f - 1.0f; }
  std::vector<float> floats(int64_t n, float scale = 1.0f) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = unit() * scale;
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

inline std::vector<float> nans(int64_t n) {
  return std::vector<float>(static_cast<size_t>(n), kNan);
}

// Success if both hold the same bits; any NaN equals any NaN. Names the first difference.
inline testing::AssertionResult same_bits(std::span<const float> expected,
                                          std::span<const float> got) {
  if (expected.size() != got.size()) {
    return testing::AssertionFailure() << got.size() << " values, not " << expected.size();
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const auto a = std::bit_cast<uint32_t>(expected[i]), b = std::bit_cast<uint32_t>(got[i]);
    if (a == b || (std::isnan(expected[i]) && std::isnan(got[i]))) continue;
    char text[128];
    std::snprintf(text, sizeof text, "element %zu of %zu is %.9g (%08x), not %.9g (%08x)", i,
                  got.size(), got[i], b, expected[i], a);
    return testing::AssertionFailure() << text;
  }
  return testing::AssertionSuccess();
}

inline testing::AssertionResult same_bits(float expected, float got) {
  return same_bits(std::span(&expected, 1), std::span(&got, 1));
}

}  // namespace headrace
