#include "runtime/plan/stage_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>

#include "runtime/error.h"
#include "tests/unit/memory_checkpoint.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::MemoryCheckpoint;
using test::model_path;
using test::small_llama;

// Of a unit's matrices: their bytes, and a multiply-add of each weight for each of 16 rows.
double cost_of(const WeightUnit& unit) {
  double cost = 0;
  for (const PlacedMatrix& matrix : unit.matrices) {
    cost += static_cast<double>(matrix.tensor->rows * matrix.tensor->cols) * 16 * 10 / 65;
  }
  return cost + static_cast<double>(unit.image_bytes);
}

// The largest stage cost of a cut.
double largest_cost(const Checkpoint& checkpoint, const std::vector<StageRange>& ranges) {
  double largest = 0;
  for (const StageRange& range : ranges) {
    double cost = 0;
    for (const WeightUnit& unit : weight_layout(checkpoint, range).units) {
      if (unit.kind == WeightUnit::Kind::kLayer) cost += cost_of(unit);
    }
    if (range.is_last) {
      // As a stage of its own, so that it is counted even where it is the embedding's.
      const int layers = checkpoint.config().n_layers;
      const WeightLayout head = weight_layout(checkpoint, {layers - 1, layers, false, true});
      cost += cost_of(head.units.back()) * 2 / 3;
    }
    largest = std::max(largest, cost);
  }
  return largest;
}

// Tries every cut of layers first .. end into `stages` parts.
double best_by_trying(const Checkpoint& checkpoint, int stages) {
  double best = 1e300;
  std::vector<StageRange> ranges;
  const std::function<void(int, int)> place = [&](int first, int left) {
    const int layers = checkpoint.config().n_layers;
    if (left == 1) {
      ranges.push_back({first, layers, first == 0, true});
      best = std::min(best, largest_cost(checkpoint, ranges));
      ranges.pop_back();
      return;
    }
    for (int end = first + 1; end <= layers - left + 1; ++end) {
      ranges.push_back({first, end, first == 0, false});
      place(end, left - 1);
      ranges.pop_back();
    }
  };
  place(0, stages);
  return best;
}

void expect_partition(const std::vector<StageRange>& ranges, int layers) {
  int next = 0;
  for (size_t s = 0; s < ranges.size(); ++s) {
    EXPECT_EQ(ranges[s].first_layer, next);
    EXPECT_GT(ranges[s].layers(), 0);
    EXPECT_EQ(ranges[s].is_first, s == 0);
    EXPECT_EQ(ranges[s].is_last, s + 1 == ranges.size());
    next = ranges[s].end_layer;
  }
  EXPECT_EQ(next, layers);
}

// Layers that differ in cost by their weight formats, heads from tiny to larger than the rest.
TEST(CutStages, NoOtherCutIsBetter) {
  std::mt19937_64 random(5);
  constexpr DType kFormats[] = {DType::kQ4_0, DType::kQ8_0, DType::kF16, DType::kF32};
  for (int round = 0; round < 60; ++round) {
    ModelConfig config = small_llama();
    config.n_layers = 1 + static_cast<int>(random() % 9);
    config.vocab_size = 33 << (random() % 8);
    config.tied_head = random() % 2 == 0;
    MemoryCheckpoint::Options options;
    std::vector<DType> formats;
    for (int l = 0; l < config.n_layers; ++l) formats.push_back(kFormats[random() % 4]);
    options.matrix_format = [&](Role role, int layer) {
      return is_layer_role(role) ? formats[static_cast<size_t>(layer)] : DType::kF16;
    };
    const MemoryCheckpoint checkpoint(config, options);
    for (int stages = 1; stages <= std::min(5, config.n_layers); ++stages) {
      const std::vector<StageRange> ranges = cut_stages(checkpoint, stages, {});
      ASSERT_EQ(std::ssize(ranges), stages);
      expect_partition(ranges, config.n_layers);
      EXPECT_NEAR(largest_cost(checkpoint, ranges) / best_by_trying(checkpoint, stages), 1, 1e-9)
          << config.n_layers << " layers, " << stages << " stages";
    }
  }
}

TEST(CutStages, ALargeHeadTakesLayersFromTheLastStage) {
  ModelConfig config = small_llama();
  config.n_layers = 8;
  const auto layers_of_last = [&](int vocab_size, bool tied) {
    config.vocab_size = vocab_size;
    config.tied_head = tied;
    return cut_stages(MemoryCheckpoint(config, {}), 2, {}).back().layers();
  };
  EXPECT_EQ(layers_of_last(32, false), 4);
  // 1024 rows of the head cost as much as 2 or 3 layers: [32][64] * 3 and [32][32] * 3 each.
  EXPECT_LT(layers_of_last(1024, false), 4);
  EXPECT_LT(layers_of_last(1024, true), 4);
  EXPECT_EQ(layers_of_last(100000, false), 1);
}

TEST(CutStages, TheSplitOptionIsObeyed) {
  ModelConfig config = small_llama();
  config.n_layers = 6;
  const MemoryCheckpoint checkpoint(config, {});
  const std::vector<StageRange> ranges = cut_stages(checkpoint, 3, {1, 4, 1});
  expect_partition(ranges, 6);
  EXPECT_EQ(ranges[1].first_layer, 1);
  EXPECT_EQ(ranges[1].end_layer, 5);
}

std::string usage_error(const std::function<void()>& action) {
  try {
    action();
  } catch (const UsageError& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST(CutStages, ErrorsSayWhatFits) {
  ModelConfig config = small_llama();
  config.n_layers = 6;
  const MemoryCheckpoint checkpoint(config, {});
  for (const std::vector<int>& split :
       {std::vector{6}, {3, 4}, {3, 2}, {2, 2, 2}, {7, -1}, {6, 0}}) {
    const std::string text = usage_error([&] { cut_stages(checkpoint, 2, split); });
    EXPECT_NE(text.find("--split " + std::to_string(split.front())), std::string::npos) << text;
    EXPECT_NE(text.find("2 positive numbers (one per rank)"), std::string::npos) << text;
    EXPECT_NE(text.find("the model's 6 layers"), std::string::npos) << text;
  }
  const std::string text = usage_error([&] { cut_stages(checkpoint, 7, {}); });
  EXPECT_EQ(text, "the model has 6 layers, too few for 7 stages; start at most 6 ranks");
}

}  // namespace
}  // namespace headrace
