// Plans in which the CPU attends to KV pages in host memory.
#include "tests/unit/device_plan_fixture.h"

namespace headrace {
namespace {

class HostAttentionPlanTest : public test::DevicePlanTest {
 protected:
  // All KV pages are in host memory; weights pass through as far as wanted.
  void open_with_pages_on_the_host() {
    open("synthetic:smollm2-135m");
    workload_.tokens = workload_.longest = 2048;
    workload_.prompt = 1024;
    kv_ = 0;
    half_ = false;
    most_share_ = 1;
    rates_.link = 2e9;  // so slow that kernels take next to no time
    page_s_ =
        static_cast<double>(Stage::page_shape(checkpoint_->config(), KvFormat::kF16).page_bytes()) /
        rates_.link;
  }
  StagePlan with_pages_read(double times_as_fast_as_the_link) {
    rates_.attention_s = page_s_ / times_as_fast_as_the_link;
    return plan(uint64_t{8} << 30);
  }
  static double share(const StagePlan& plan) { return plan.device->sizes.host_share; }

  double page_s_ = 0;  // that the link takes for a page of a layer
};

TEST_F(HostAttentionPlanTest, LinkAndCpuTakeAboutAsLong) {
  open_with_pages_on_the_host();
  most_share_ = 0;
  const StagePlan without = with_pages_read(3);
  EXPECT_EQ(share(without), 0.0);
  EXPECT_EQ(without.host_s, 0.0);
  most_share_ = 1;
  const StagePlan three = with_pages_read(3);
  EXPECT_NEAR(share(three), 0.75, 0.03);
  EXPECT_NEAR(three.host_s, three.link_s, 0.1 * three.link_s);
  EXPECT_LT(three.round_s, 0.3 * without.round_s);
  EXPECT_GT(three.served_per_s, 1.5 * without.served_per_s);
  EXPECT_DOUBLE_EQ(three.round_s, std::max(three.compute_s, three.link_s));
  build(three);
  const StagePlan half = with_pages_read(0.5);
  EXPECT_NEAR(share(half), 1.0 / 3, 0.03);
  // The link has weights to bring as well.
  weights_ = 0;
  const StagePlan weights = with_pages_read(0.5);
  EXPECT_GT(share(weights), share(half) + 0.02);
  build(weights);
}

TEST_F(HostAttentionPlanTest, LinkAndCpuShareTheHostsMemory) {
  open_with_pages_on_the_host();
  const StagePlan alone = with_pages_read(9);
  rates_.host_memory = 12 * rates_.link;
  EXPECT_EQ(share(with_pages_read(9)), share(alone));
  // All pages are read there, by whom does not matter: then by the GPU, as far as its link goes.
  rates_.host_memory = 1.5 * rates_.link;
  const StagePlan shared = with_pages_read(9);
  EXPECT_NEAR(share(shared), 1.0 / 3, 0.05);
  EXPECT_NEAR(shared.host_s, alone.round_s * 10 / 1.5, 0.1 * shared.host_s);
  build(shared);
  // Of no account where the CPU attends to nothing.
  most_share_ = 0;
  rates_.host_memory = 0.1 * rates_.link;
  const StagePlan without = with_pages_read(9);
  EXPECT_EQ(without.host_s, 0.0);
  EXPECT_DOUBLE_EQ(without.round_s, std::max(without.compute_s, without.link_s));
}

TEST_F(HostAttentionPlanTest, NothingForACpuThatIsSlowOrHasNoPages) {
  open_with_pages_on_the_host();
  EXPECT_EQ(share(with_pages_read(1e-3)), 0.0);
  kv_ = UINT64_MAX;
  for (const double least : {0.0, 0.5}) {
    least_share_ = least;
    const StagePlan all_there = with_pages_read(3);
    EXPECT_EQ(all_there.device->sizes.kv_host_pages, 0);
    EXPECT_EQ(share(all_there), 0.0);
    EXPECT_EQ(all_there.host_s, 0.0);
    EXPECT_EQ(describe(all_there).find("the CPU attends"), std::string::npos);
    build(all_there);
  }
}

TEST_F(HostAttentionPlanTest, TheUserMaySayHowMuch) {
  open_with_pages_on_the_host();
  least_share_ = most_share_ = 0.25;
  for (const double fast : {1e-3, 3.0}) {
    const StagePlan fixed = with_pages_read(fast);
    EXPECT_EQ(share(fixed), 0.25);
    build(fixed);
  }
  const StagePlan fixed = with_pages_read(3);
  EXPECT_NE(describe(fixed).find("the CPU attends to 25 % of the KV pages in host memory"),
            std::string::npos);
  EXPECT_NE(plan_table(fixed, rates_).find("attends to 25 %"), std::string::npos);
  EXPECT_NE(describe_prediction(fixed).find("attention by the CPU"), std::string::npos);
}

TEST_F(HostAttentionPlanTest, RowsForTheCpuAreInTheBudget) {
  open_with_pages_on_the_host();
  const StagePlan with = with_pages_read(3);
  most_share_ = 0;
  const StagePlan without = with_pages_read(3);
  const ModelConfig& config = checkpoint_->config();
  const auto rows = static_cast<uint64_t>(16 * 2 * (config.q_rows() + config.kv_rows()));
  EXPECT_EQ(DeviceStage::host_rows_bytes(config, with.device->sizes), rows * sizeof(float));
  EXPECT_EQ(DeviceStage::host_rows_bytes(config, without.device->sizes), 0U);
  EXPECT_GE(with.activations, without.activations + rows * sizeof(float));
  // No more host memory than that, to the byte.
  limits_.host_memory = with.weights + with.kv + with.activations + with.other + (97 << 20);
  most_share_ = 1;
  build(with_pages_read(3));
}

}  // namespace
}  // namespace headrace
