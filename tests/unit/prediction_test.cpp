#include "runtime/plan/prediction.h"

#include <gtest/gtest.h>

#include <cmath>

namespace headrace {
namespace {

// A layer's matrices: 8 MiB, 1 ms for the first row and 0.1 ms for each further one.
constexpr uint64_t kLayerBytes = 8 << 20;
constexpr double kFirstRow = 1e-3, kRow = 1e-4;
constexpr uint64_t kStride = 8192;
constexpr int kLayers = 10;

class Prediction : public testing::Test {
 protected:
  Prediction() {
    layout_.range = {0, kLayers, false, false};
    layout_.units.resize(kLayers);
    for (WeightUnit& unit : layout_.units) unit.image_bytes = kLayerBytes;
    rates_.byte_s = kFirstRow / static_cast<double>(kLayerBytes);
    rates_.byte_row_s = kRow / static_cast<double>(kLayerBytes);
    rates_.disk = 1e9;
    plan_.placement.streamed.assign(kLayers, 0);
    plan_.sizes.micro_batch_rows = 128;
    plan_.sizes.step_rows = 512;
  }

  StagePlan predicted() const {
    StagePlan plan = plan_;
    predict(layout_, rates_, round_, plan);
    return plan;
  }
  // All of the cache but so much on disk.
  void put_on_disk(int64_t kv_pages, int64_t staging) {
    plan_.sizes.kv_pages = kv_pages;
    plan_.sizes.kv_disk_pages = round_.pages - kv_pages;
    plan_.sizes.kv_staging_pages = staging;
  }

  WeightLayout layout_;
  Rates rates_;
  Round round_{32, 1, 32 * 64, 64 * kPageTokens, 32 * kPageTokens, kStride, true};
  StagePlan plan_;
};

TEST_F(Prediction, ComputingIsMatricesAndAttention) {
  const double matrices = kLayers * (kFirstRow + 31 * kRow);
  EXPECT_NEAR(predicted().compute_s, matrices, 1e-12);
  rates_.attention_s = 1e-6;  // for a page
  EXPECT_NEAR(predicted().compute_s, matrices + kLayers * 0.75 * 32 * 64 * 1e-6, 1e-12);
  EXPECT_NEAR(predicted().tokens_per_s, 32 / predicted().compute_s, 1e-9);
}

TEST_F(Prediction, AttentionSeesThePromptAndHalfOfTheAnswer) {
  rates_.attention_s = 1e-6;
  const double matrices = kLayers * (kFirstRow + 31 * kRow);
  for (const auto& [prompt, share] : {std::pair{16, 0.625}, {48, 0.875}}) {
    round_.prompt = prompt * kPageTokens;
    EXPECT_NEAR(predicted().compute_s, matrices + kLayers * share * 32 * 64 * 1e-6, 1e-12);
  }
}

TEST_F(Prediction, LongPromptsLeaveLessTimeForAnswers) {
  // The prompts' rows take steps of 512 in micro-batches of 128.
  const double prompt_token_s = kLayers * (kFirstRow + 127 * kRow) / 128;
  for (const auto& [prompt, per_token] : {std::pair{32, 1.0}, {48, 3.0}}) {
    round_.prompt = prompt * kPageTokens;
    const StagePlan plan = predicted();
    EXPECT_NEAR(plan.served_per_s, 32 / (plan.round_s + 32 * per_token * prompt_token_s), 1e-9);
  }
}

TEST_F(Prediction, SmallMicroBatchesAndShortStepsPassTheWeightsMoreOften) {
  for (int64_t Stage::Sizes::*rows : {&Stage::Sizes::micro_batch_rows, &Stage::Sizes::step_rows}) {
    plan_.sizes = {.step_rows = 512, .micro_batch_rows = 128};
    plan_.sizes.*rows = 8;
    EXPECT_NEAR(predicted().compute_s, 4 * kLayers * (kFirstRow + 7 * kRow), 1e-12);
  }
}

TEST_F(Prediction, PagesAreReadAtTheirOwnRate) {
  put_on_disk(500, 2000);
  // The last page of each sequence is in memory, half full on average.
  const double bytes = kLayers * (0.75 * 32 * 64 - 16 - 500) * kStride;
  EXPECT_NEAR(predicted().disk_s, bytes / 1e9, 1e-9);
  rates_.kv_disk = 4e8;
  EXPECT_NEAR(predicted().disk_s, bytes / 4e8, 1e-9);
  EXPECT_NEAR(predicted().round_s, predicted().disk_s, 1e-9) << "the disk is what takes longest";
}

TEST_F(Prediction, WeightsAndPagesShareTheDisk) {
  put_on_disk(500, 2000);
  const double pages = predicted().disk_s;
  plan_.placement.streamed.assign(kLayers, kLayerBytes);
  plan_.streamed = kLayers * kLayerBytes;
  EXPECT_NEAR(predicted().disk_s, pages + static_cast<double>(plan_.streamed) / 1e9, 1e-9);
}

TEST_F(Prediction, TheDiskIdlesWhileMoreIsComputedThanTheRingHolds) {
  plan_.placement.streamed.assign(kLayers, kLayerBytes / 2);
  plan_.placement.ring = 1 << 20;
  plan_.streamed = kLayers * kLayerBytes / 2;
  const double resident = (kFirstRow + 31 * kRow) / 2, ring = static_cast<double>(1 << 20) / 1e9;
  EXPECT_NEAR(predicted().disk_s,
              static_cast<double>(plan_.streamed) / 1e9 + kLayers * (resident - ring), 1e-9);
  rates_.attention_s = 1e-6;
  const double attention = 0.75 * 32 * 64 * 1e-6;  // of a layer, which needs no weights either
  EXPECT_NEAR(predicted().disk_s,
              static_cast<double>(plan_.streamed) / 1e9 + kLayers * (resident + attention - ring),
              1e-9);
}

TEST_F(Prediction, LittleStagingMakesAttentionWait) {
  put_on_disk(500, 2000);
  const StagePlan enough = predicted();
  put_on_disk(500, 100);
  const StagePlan little = predicted();
  EXPECT_EQ(little.compute_s, enough.compute_s);
  EXPECT_EQ(little.disk_s, enough.disk_s);
  // While the matrices are computed no more is read than there is room for.
  const double ahead = kLayers * 100 * kStride / 1e9;
  EXPECT_NEAR(little.round_s, little.compute_s + little.disk_s - ahead, 1e-9);
  round_.overlapped = false;
  EXPECT_NEAR(predicted().round_s, little.compute_s + little.disk_s, 1e-9);
}

TEST_F(Prediction, NothingIsSaidWithoutRates) {
  rates_ = {};
  EXPECT_EQ(predicted().round_s, 0);
}

}  // namespace
}  // namespace headrace
