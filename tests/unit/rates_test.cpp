#include "runtime/plan/rates.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/ops/cpu/kernels.h"

namespace headrace {
namespace {

constexpr uint64_t kMiB = 1 << 20;

TEST(Rates, MemoryIsReadWithinTheBudget) {
  ThreadPool threads(2, 0);
  MemoryBudget budget("host memory", 8 * kMiB);
  EXPECT_GT(measure_memory(threads, budget, 64 * kMiB), 1e6);
  EXPECT_EQ(budget.used(), 0U);
  MemoryBudget none("host memory", kMiB);
  EXPECT_EQ(measure_memory(threads, none, 64 * kMiB), 0.0);
}

TEST(Rates, AttentionIsTimedWithinTheBudget) {
  ThreadPool threads(2, 0);
  const Cpu cpu{threads, kernels("auto")};
  ModelConfig config;
  config.n_heads = config.n_kv_heads = 4;
  config.head_dim = 64;
  MemoryBudget budget("host memory", kMiB + 4096);
  Rates rates;
  measure_attention(config, KvFormat::kF16, cpu, budget, rates, 64 * kMiB);
  EXPECT_GT(rates.attention_s, 0.0);
  EXPECT_EQ(budget.used(), 0U);
}

TEST(Rates, ADiskIsReadInWholeParts) {
  MemoryBudget budget("host memory", 32 * kMiB);
  const std::unique_ptr<File> probe = make_probe(testing::TempDir(), 5 * kMiB, budget);
  for (const ReadPattern pattern : {ReadPattern{}, ReadPattern{64 << 10, true},
                                    ReadPattern{3 * kMiB, false}, ReadPattern{64 * kMiB, true}}) {
    SCOPED_TRACE(pattern.part);
    const double rate = measure_read(*probe, budget, pattern);
    EXPECT_TRUE(rate > 0 && std::isfinite(rate)) << rate;
    EXPECT_EQ(budget.used(), 0U);
  }
}

}  // namespace
}  // namespace headrace
