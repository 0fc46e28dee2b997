// Where weights, KV pages and rows go beside a device, and what that should take.
#include "comm/activation_link.h"
#include "comm/device_wire.h"
#include "tests/unit/device_plan_fixture.h"

namespace headrace {
namespace {

using test::DevicePlanTest;
using test::kLibraries;
using test::kMiB;
using test::kPlenty;

TEST_F(DevicePlanTest, AllOfASmallModelIsOnTheDevice) {
  open("synthetic:smollm2-135m");
  const StagePlan all = plan(uint64_t{8} << 30);
  EXPECT_EQ(all.device->streamed, 0U);
  EXPECT_EQ(all.device->sizes.weights.slots, 0);
  EXPECT_EQ(all.device->sizes.kv_host_pages, 0);
  // Longer sequences than usual have what is left.
  EXPECT_GT(all.sizes.kv_pages, 16 * KvStore::pages_for(64));
  EXPECT_EQ(all.placement.ends, std::vector<uint64_t>(layout_.units.size(), 0));
  build(all);
}

TEST_F(DevicePlanTest, TheHostKeepsWhatItProjectsWith) {
  open("synthetic:opt-350m");
  const WeightUnit& embedding = layout_.units.front();
  ASSERT_NE(embedding.find(Role::kProjectIn), nullptr);
  const StagePlan all = plan(uint64_t{8} << 30);
  EXPECT_EQ(all.placement.ends.front(), embedding.image_bytes);
  EXPECT_GE(all.weights, embedding.image_bytes);
  build(all);
}

TEST_F(DevicePlanTest, WhatHasNoRoomPassesThroughOrStaysOnTheHost) {
  open("synthetic:smollm2-135m");
  uint64_t weights_before = 0;
  int64_t host_pages_before = INT64_MAX;
  for (const uint64_t more : {120, 150, 200, 300, 420}) {
    SCOPED_TRACE(more);
    const StagePlan some = plan(kLibraries + more * kMiB);
    EXPECT_GE(some.device->weights, weights_before);
    EXPECT_LE(some.device->sizes.kv_host_pages, host_pages_before);
    EXPECT_EQ(some.sizes.slots, 16);
    weights_before = some.device->weights;
    host_pages_before = some.device->sizes.kv_host_pages;
    build(some);
  }
  EXPECT_GT(weights_before, 0U);
  EXPECT_EQ(host_pages_before, 0);
}

TEST_F(DevicePlanTest, KvPagesGoToTheHostBeforeTheRunIsRefused) {
  open("synthetic:smollm2-135m");
  workload_.tokens = workload_.longest = 2048;
  workload_.prompt = 1024;
  const StagePlan some = plan(kLibraries + 200 * kMiB);
  EXPECT_GT(some.device->sizes.kv_host_pages, 0);
  EXPECT_EQ(some.sizes.kv_pages, 16 * KvStore::pages_for(2048));
  build(some);
}

TEST_F(DevicePlanTest, KvPagesOnTheHostStayWithinTheirPart) {
  open("synthetic:smollm2-135m");
  workload_.tokens = workload_.longest = 2048;
  workload_.prompt = 1024;
  limits_.kv_memory = 10 * kMiB;
  for (const bool exact : {true, false}) {
    workload_.exact = exact;
    const StagePlan fewer = plan(kLibraries + 200 * kMiB);
    EXPECT_LT(fewer.sizes.slots, 16);
    EXPECT_LE(fewer.kv, limits_.kv_memory);
  }
}

TEST_F(DevicePlanTest, KvPagesGoToDiskWhereTheHostHasNoRoom) {
  open("synthetic:smollm2-135m");
  workload_.tokens = workload_.longest = 1024;
  workload_.prompt = 512;
  limits_.host_memory = 600 * kMiB;
  const uint64_t device = kLibraries + 200 * kMiB;
  EXPECT_LT(plan(device).sizes.slots, 16);
  limits_.disk = kPlenty;
  const StagePlan some = plan(device);
  const DeviceStage::Sizes& sizes = some.device->sizes;
  EXPECT_EQ(some.sizes.slots, 16);
  EXPECT_EQ(sizes.kv_pages, 16 * KvStore::pages_for(1024));
  EXPECT_GT(sizes.kv_host_pages, 0);
  EXPECT_TRUE(some.placement.all_resident()) << "weights are read in every step, pages more rarely";
  EXPECT_EQ(some.disk, DeviceStage::disk_kv_bytes(checkpoint_->config(), range_, sizes));
  EXPECT_NE(describe(some).find(std::to_string(sizes.kv_disk_pages * 16) + " on disk"),
            std::string::npos);
  EXPECT_NE(plan_table(some, rates_).find(" on disk"), std::string::npos);
  EXPECT_NE(plan_table(some, rates_).find("for sequences of "), std::string::npos);
  EXPECT_NE(describe_prediction(some).find("reading"), std::string::npos);
  build(some);
  // What has room stays on the host.
  limits_.host_memory += 20 * kMiB;
  const StagePlan less = plan(device);
  EXPECT_LT(less.device->sizes.kv_disk_pages, sizes.kv_disk_pages - 40);
  EXPECT_LT(less.disk_s, some.disk_s);
  limits_.disk = less.disk / 2;
  EXPECT_LT(plan(device).sizes.slots, 16);
}

TEST_F(DevicePlanTest, KvPagesBeyondTheirPartOfTheHostGoToDisk) {
  open("synthetic:smollm2-135m");
  workload_.tokens = workload_.longest = 1024;
  workload_.prompt = 512;
  kv_ = 0;
  limits_.kv_memory = 100 * kMiB;
  limits_.disk = kPlenty;
  const StagePlan some = plan(uint64_t{8} << 30);
  EXPECT_EQ(some.sizes.slots, 16);
  EXPECT_LE(some.kv, limits_.kv_memory);
  EXPECT_GT(some.device->sizes.kv_disk_pages, some.device->sizes.kv_host_pages);
  // Pages of other sizes are padded where some are on disk.
  kv_ = UINT64_MAX;
  sizes_.kv_format = KvFormat::kQ8;
  EXPECT_NE(Stage::page_shape(checkpoint_->config(), KvFormat::kQ8).page_bytes() % kIoAlignment,
            0U);
  limits_.kv_memory = 80 * kMiB;
  const StagePlan padded = plan(kLibraries + 130 * kMiB);
  EXPECT_EQ(padded.sizes.slots, 16);
  EXPECT_GT(padded.device->sizes.kv_disk_pages, 0);
  build(padded);
}

TEST_F(DevicePlanTest, NoPagesOnADiskThatIsTooSlowForThem) {
  open("synthetic:smollm2-135m");
  workload_.exact = false;
  workload_.tokens = workload_.longest = 1024;
  workload_.prompt = 512;
  kv_ = 0;
  limits_.host_memory = 300 * kMiB;
  limits_.disk = kPlenty;
  rates_.disk = 5e8;
  const StagePlan fewer = plan(uint64_t{8} << 30);
  EXPECT_LT(fewer.sizes.slots, 16);
  EXPECT_EQ(fewer.device->sizes.kv_disk_pages, 0);
  rates_.disk = 1e12;
  const StagePlan all = plan(uint64_t{8} << 30);
  EXPECT_EQ(all.sizes.slots, 16);
  EXPECT_GT(all.device->sizes.kv_disk_pages, 0);
}

TEST_F(DevicePlanTest, PredictsWhatKvPagesOnDiskTake) {
  open("synthetic:smollm2-135m");
  workload_.tokens = workload_.longest = 1024;
  workload_.prompt = 512;
  kv_ = 0;
  limits_.kv_memory = 75 * kMiB;  // for those on their way
  limits_.disk = kPlenty;
  rates_.kv_disk = 5e8;
  const StagePlan all = plan(uint64_t{8} << 30);
  EXPECT_EQ(all.device->sizes.kv_disk_pages, all.sizes.kv_pages);
  // 16 sequences of 768 tokens on average, of 30 layers, 3 heads of 64, K and V of 2 bytes.
  const double kv = 16.0 * 768 * 30 * 3 * 64 * 2 * 2;
  EXPECT_NEAR(all.disk_s, kv / 5e8, 0.02 * all.disk_s);
  EXPECT_NEAR(all.link_s, kv / 5e10, 0.05 * all.link_s);
  EXPECT_DOUBLE_EQ(all.round_s, all.disk_s);
}

TEST_F(DevicePlanTest, TheUserMayKeepWeightsOffTheDevice) {
  open("synthetic:smollm2-135m");
  weights_ = 0;
  const StagePlan none = plan(uint64_t{8} << 30);
  EXPECT_EQ(none.device->weights, 0U);
  EXPECT_GT(none.device->streamed, 200 * kMiB);
  EXPECT_EQ(none.device->sizes.weights.slots, 3) << "fewer would bring nothing";
  build(none);
}

// A rank with few layers: as much of them passes as has no room, in slots that have room for that,
// and the host has no more.
TEST_F(DevicePlanTest, OfFewLayersPartsStay) {
  open("synthetic:qwen2.5-0.5b");
  range_ = {0, 4, true, false};
  layout_ = weight_layout(*checkpoint_, range_);
  const WeightUnit& layer = layout_.units[1];
  const uint64_t all = plan(uint64_t{4} << 30).device->all;
  const auto expect_parts = [&](const StagePlan& some, uint64_t passing) {
    const DevicePlacement& placement = some.device->sizes.weights;
    EXPECT_LT(some.device->streamed, passing);
    EXPECT_LT(DeviceWeights::slot_bytes(layout_, placement), layer.image_bytes);
    for (size_t u = 1; u < layout_.units.size(); ++u) {
      EXPECT_EQ(some.placement.ends[u], DeviceWeights::host_end(layout_, placement, u));
      EXPECT_LT(some.placement.ends[u], layer.image_bytes);
    }
    build(some);
  };
  // Three layers and a half: without parts one would pass.
  weights_ = layer.image_bytes * 7 / 2;
  expect_parts(plan(uint64_t{4} << 30), layer.image_bytes);
  limits_.host_memory = 320 * kMiB;
  limits_.disk = kPlenty;
  const StagePlan from_disk = plan(uint64_t{4} << 30);
  EXPECT_TRUE(from_disk.needs_disk());
  expect_parts(from_disk, layer.image_bytes);
  EXPECT_LE(from_disk.streamed, from_disk.device->streamed + 4 * kReadBlock);
  // A layer less than all of them: with slots for whole layers, and where they are expanded, three
  // would pass.
  weights_ = UINT64_MAX;
  limits_.host_memory = kPlenty;
  const uint64_t embedding = layout_.units[0].image_bytes;
  workload_.tokens = workload_.longest = 16;
  workload_.prompt = 8;
  expect_parts(plan(all - embedding - layer.image_bytes), 3 * layer.image_bytes);
}

TEST_F(DevicePlanTest, TheHostLooksTokensUpWhereThatLeavesRoomForAllLayers) {
  open("synthetic:tinyllama-1.1b:q8");
  ASSERT_NE(layout_.head_unit(), 0U);
  const auto looks_up = [&](const StagePlan& plan) {
    return DeviceWeights::has_embedding(layout_, plan.device->sizes.weights);
  };
  uint64_t memory = uint64_t{4} << 30;
  ASSERT_TRUE(looks_up(plan(memory)));
  while (looks_up(plan(memory))) memory -= 8 * kMiB;
  const StagePlan some = plan(memory);
  EXPECT_EQ(some.device->streamed, 0U);
  EXPECT_EQ(some.device->sizes.weights.slots, 0);
  EXPECT_EQ(some.placement.ends[0], layout_.units[0].matrices.back().bytes());
  build(some);
}

TEST_F(DevicePlanTest, FewerLayersAreOnTheirWayWhereThereIsLittleRoom) {
  open("synthetic:smollm2-135m");
  uint64_t more = 60 * kMiB;
  while (!refusal(kLibraries + more).empty()) more += kMiB / 4;
  const StagePlan least = plan(kLibraries + more);
  EXPECT_EQ(least.device->sizes.weights.slots, 2);
  build(least);
  EXPECT_NE(refusal(kLibraries + more - kMiB).find("with 2 layers on their way"),
            std::string::npos);
}

// A layer of f16 is 3.4 GiB, and once more as rows.
TEST_F(DevicePlanTest, AVeryLargeModelPassesThroughASmallDevice) {
  open("synthetic:opt-175b");
  workload_ = {64, false, 544, 512, 544, 1};
  sizes_.slots = 64;
  limits_.host_memory = uint64_t{1} << 40;
  const StagePlan some = plan(uint64_t{12} << 30);
  EXPECT_EQ(some.device->weights, 0U);
  EXPECT_EQ(some.device->sizes.weights.slots, 2);
  EXPECT_GE(some.sizes.slots, 32);
}

TEST_F(DevicePlanTest, TheUserMayKeepKvPagesOffTheDevice) {
  open("synthetic:smollm2-135m");
  for (const uint64_t pages : {0, 11}) {
    kv_ = pages * KvStore::bytes_per_page(Stage::page_shape(checkpoint_->config(), KvFormat::kF16),
                                          range_.layers());
    const StagePlan host = plan(uint64_t{8} << 30);
    EXPECT_EQ(host.sizes.kv_pages, 16 * KvStore::pages_for(64));
    EXPECT_EQ(host.device->sizes.kv_host_pages, host.sizes.kv_pages - static_cast<int64_t>(pages));
    EXPECT_GE(host.device->sizes.kv_window, KvStore::pages_for(64));
    EXPECT_EQ(host.device->streamed, 0U) << "weights have what KV pages leave";
    EXPECT_GT(host.link_s, 0.0);
    build(host);
  }
}

// All weights that pass through come over for every step of prompts.
TEST_F(DevicePlanTest, PromptsGoInLongStepsThoughKvPagesWantTheRoom) {
  open("synthetic:qwen2.5-0.5b");
  sizes_.slots = 64;
  sizes_.step_rows = 8192;
  sizes_.micro_batch_rows = 4096;
  workload_ = {64, true, 544, 512, 544, 1};
  weights_ = 0;
  const StagePlan some = plan(kLibraries + 600 * kMiB);
  EXPECT_GT(some.device->sizes.kv_host_pages, 0);
  EXPECT_GE(some.sizes.step_rows, 4096);
}

// What is read for each step of prompts is worth long ones; the host has room for sampled rows.
TEST_F(DevicePlanTest, PromptsGoInLongerStepsWhereWeightsComeFromDisk) {
  open("synthetic:smollm2-135m");
  workload_ = {16, true, 520, 512, 520, 1};
  limits_.host_memory = 200 * kMiB;
  limits_.disk = kPlenty;
  weights_ = 60 * kMiB;  // the embedding, which is the head
  const uint64_t memory = kLibraries + 900 * kMiB;
  const StagePlan some = plan(memory);
  EXPECT_GT(some.streamed, 0U);
  EXPECT_EQ(some.sizes.step_rows, 16 * 512);
  EXPECT_FALSE(some.device->sizes.has_passing_rows()) << "there is room for them";
  EXPECT_EQ(some.host_hidden_rows, 16);
  build(some);
  workload_.chunk = 64;
  EXPECT_EQ(plan(memory).sizes.step_rows, 16 * 64) << "all that ever come at once";
  workload_.chunk = 100;
  EXPECT_EQ(plan(memory).sizes.step_rows, 16 * 100);
  limits_.host_memory = kPlenty;
  sizes_.step_rows = 16384;
  sizes_.slots = 64;
  workload_ = {64, true, 520, 512, 520, 1};
  EXPECT_EQ(plan(memory).sizes.step_rows, 16384) << "products take longer than the link";
}

// A stage that has nothing of long steps itself gives them room where that costs it nothing.
TEST_F(DevicePlanTest, StepsAreAsLongAsAnotherStageWantsThem) {
  open("synthetic:smollm2-135m");
  range_ = {0, 10, true, false};
  layout_ = weight_layout(*checkpoint_, range_);
  workload_ = {16, true, 520, 512, 520, 2};
  const StagePlan without = plan(uint64_t{4} << 30);
  ASSERT_EQ(without.device->streamed, 0U);
  EXPECT_EQ(without.sizes.step_rows, sizes_.step_rows);
  workload_.wanted_step_rows = 4096;
  const StagePlan some = plan(uint64_t{4} << 30);
  EXPECT_EQ(some.sizes.step_rows, 4096);
  EXPECT_EQ(some.device->streamed, 0U);
  build(some);
  // Weights that would pass for it are worth more.
  uint64_t memory = uint64_t{2} << 30;
  for (workload_.wanted_step_rows = 0; plan(memory).device->streamed == 0;) memory -= 2 * kMiB;
  memory += 2 * kMiB;
  workload_.wanted_step_rows = 4096;
  EXPECT_EQ(plan(memory).device->streamed, 0U);
  EXPECT_LT(plan(memory).sizes.step_rows, 4096);
  // But not beside a stage that is slower.
  workload_.enough_per_s = plan(memory).served_per_s / 100;
  const StagePlan slower = plan(memory);
  EXPECT_EQ(slower.sizes.step_rows, 4096);
  EXPECT_GT(slower.served_per_s, workload_.enough_per_s);
  build(slower);
}

TEST_F(DevicePlanTest, HiddenStatesOfLongStepsPassThroughASmallDevice) {
  open("synthetic:smollm2-135m");
  sizes_.step_rows = 8192;
  sizes_.micro_batch_rows = 4096;
  workload_ = {16, true, 520, 512, 520, 1};
  limits_.host_memory = 150 * kMiB;
  limits_.disk = kPlenty;
  weights_ = 0;
  const StagePlan some = plan(kLibraries + 110 * kMiB);
  ASSERT_TRUE(some.device->sizes.has_passing_rows());
  EXPECT_GE(some.device->sizes.hidden_rows,
            HiddenWindow::kLeastPlaces * some.sizes.micro_batch_rows);
  EXPECT_EQ(some.host_hidden_rows, some.sizes.step_rows);
  const std::string rows = "hidden states of more than " +
                           std::to_string(some.device->sizes.hidden_rows) +
                           " rows in host memory between layers";
  EXPECT_NE(describe(some).find(rows), std::string::npos) << describe(some);
  EXPECT_NE(plan_table(some, rates_).find(rows), std::string::npos);
  build(some);
  // Where hidden states come and go by wire there is no host memory for them.
  wires_ = 1;
  range_ = {0, 30, true, false};
  layout_ = weight_layout(*checkpoint_, range_);
  EXPECT_FALSE(plan(kLibraries + 200 * kMiB).device->sizes.has_passing_rows());
}

// MPI counts the bytes of a message in an int.
TEST_F(DevicePlanTest, StepsOfAPipelineFitInAMessage) {
  open("synthetic:opt-175b");
  range_ = {0, 48, true, false};
  layout_ = weight_layout(*checkpoint_, range_);
  sizes_.slots = 512;
  workload_ = {512, true, 544, 512, 544, 2};
  limits_.host_memory = uint64_t{200} << 30;
  limits_.disk = uint64_t{1} << 50;
  const StagePlan some = plan(uint64_t{80} << 30);
  EXPECT_GT(some.sizes.step_rows, sizes_.step_rows);
  EXPECT_LE(link_buffer_bytes(checkpoint_->config(), some.sizes.step_rows), INT32_MAX);
}

TEST_F(DevicePlanTest, HiddenStatesOnTheirWayBetweenDevicesAreCounted) {
  open("synthetic:smollm2-135m");
  range_ = {0, 10, true, false};
  layout_ = weight_layout(*checkpoint_, range_);
  const uint64_t memory = kLibraries + 200 * kMiB;
  const StagePlan without = plan(memory);
  wires_ = 1;
  const StagePlan some = plan(memory);
  EXPECT_EQ(without.device->sizes.link_buffers, 0);
  EXPECT_EQ(some.device->sizes.link_buffers, kLinkBuffers);
  DeviceStage::Sizes sizes = some.device->sizes;
  const uint64_t all = DeviceStage::bytes_needed(checkpoint_->config(), layout_, sizes);
  sizes.link_buffers = 0;
  EXPECT_EQ(all - DeviceStage::bytes_needed(checkpoint_->config(), layout_, sizes),
            kLinkBuffers * link_buffer_bytes(checkpoint_->config(), sizes.step_rows));
  EXPECT_EQ(some.device->all, all + kLibraries + kWireBytes);
  EXPECT_LT(some.device->kv, without.device->kv);
  build(some);
}

TEST_F(DevicePlanTest, Float32KeepsPanels) {
  open("synthetic:tiny-llama:q8");
  half_ = false;
  const StagePlan all = plan(uint64_t{1} << 30);
  EXPECT_FALSE(all.device->sizes.weights.half_rows);
  build(all);
}

TEST_F(DevicePlanTest, WhatTheHostCannotHoldComesFromDisk) {
  open("synthetic:smollm2-135m");
  weights_ = 50 * kMiB;
  limits_.host_memory = 250 * kMiB;
  EXPECT_NE(refusal(kLibraries + 600 * kMiB), "");
  limits_.disk = kPlenty;
  const StagePlan from_disk = plan(kLibraries + 600 * kMiB);
  EXPECT_GT(from_disk.streamed, 0U);
  EXPECT_GT(from_disk.disk_s, 0.0);
  build(from_disk);
}

TEST_F(DevicePlanTest, ARefusalNamesNeedBudgetAndCure) {
  open("synthetic:smollm2-135m");
  const std::string device = refusal(100 * kMiB);
  for (const char* word : {"device memory is too small", "100.0 MiB", "--device-memory"}) {
    EXPECT_NE(device.find(word), device.npos) << device;
  }
  limits_.host_memory = 20 * kMiB;
  const std::string host = refusal(kLibraries + 150 * kMiB);
  for (const char* word :
       {"host memory is too small", "20.0 MiB", "--host-memory", "or a --disk"}) {
    EXPECT_NE(host.find(word), host.npos) << host;
  }
  limits_.host_memory = uint64_t{64} << 30;
  limits_.kv_memory = 64 << 10;
  kv_ = 0;
  const std::string kv = refusal(uint64_t{8} << 30);
  for (const char* word : {"KV cache's memory is too small", "64.0 KiB", "more --kv-memory"}) {
    EXPECT_NE(kv.find(word), kv.npos) << kv;
  }
}

TEST_F(DevicePlanTest, PredictsTheSlowestPath) {
  open("synthetic:qwen2.5-0.5b");
  const StagePlan all = plan(uint64_t{16} << 30);
  EXPECT_EQ(all.link_s, 0.0);
  EXPECT_DOUBLE_EQ(all.round_s, all.compute_s);
  weights_ = 0;
  const StagePlan none = plan(uint64_t{16} << 30);
  EXPECT_NEAR(none.link_s, static_cast<double>(none.device->streamed) / 5e10, 1e-6);
  EXPECT_DOUBLE_EQ(none.round_s, none.link_s);
  EXPECT_NEAR(none.tokens_per_s, 16 / none.round_s, 1e-3);
  EXPECT_NE(describe(none).find("copied to it per step"), std::string::npos);
  EXPECT_NE(describe_prediction(none).find("copying to the GPU"), std::string::npos);
  EXPECT_NE(plan_table(none, rates_).find("GPU"), std::string::npos);
}

TEST_F(DevicePlanTest, PredictsThatLowBitWeightsAreExpanded) {
  workload_ = {1, true, 2, 1, 2, 1};  // hardly any KV pages
  open("synthetic:smollm2-135m");
  const StagePlan plain = plan(uint64_t{8} << 30);
  open("synthetic:smollm2-135m:q4");
  const StagePlan q4 = plan(uint64_t{8} << 30);
  // 134 million weights: read once, or read, written and read; and 30 layers' kernels begin.
  constexpr double kBegin = 30 * 60e-6;
  const double plain_s = 2 * 134e6 / 3e12;
  EXPECT_NEAR(plain.compute_s - kBegin, plain_s, 0.15 * plain_s);
  const double packed = 134e6 * 4.5 / 8, rows = 134e6 * 2;
  const double q4_s = (packed + (packed + rows) / 0.45 + rows) / 3e12;
  EXPECT_NEAR(q4.compute_s - kBegin, q4_s, 0.15 * q4_s);
}

TEST_F(DevicePlanTest, FewerSequencesWhereTheirPagesWouldCostMore) {
  open("synthetic:smollm2-135m");
  workload_.exact = false;
  workload_.sequences = sizes_.slots = 256;
  workload_.tokens = workload_.longest = 4096;
  workload_.prompt = 2048;
  limits_.host_memory = uint64_t{1} << 30;  // not for the pages of all
  const StagePlan some = plan(kLibraries + 400 * kMiB);
  EXPECT_LT(some.sizes.slots, 256);
  EXPECT_GE(some.sizes.kv_pages, some.sizes.slots * KvStore::pages_for(4096));
  build(some);
}

}  // namespace
}  // namespace headrace
