// The head of a StageEngine, and its slots.
#include "engine/stage_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"
#include "tests/reference/model.h"
#include "tests/unit/child_process.h"
#include "tests/unit/engine_logits.h"
#include "tests/unit/engine_stage.h"
#include "tests/unit/memory_checkpoint.h"

namespace headrace {
namespace {

using test::describe;
using test::EngineStage;
using test::MemoryCheckpoint;
using test::model_path;
using test::random_sequences;
using test::RunShape;

// What the last of two stages is made of, with a large vocabulary.
struct LastStage {
  static ModelConfig config(int vocabulary) {
    ModelConfig config = test::small_llama();
    config.vocab_size = vocabulary;
    return config;
  }
  explicit LastStage(int vocabulary = 70000) : checkpoint(config(vocabulary), {}) {}

  const MemoryCheckpoint checkpoint;
  const StageRange range{1, 2, false, true};
  ThreadPool threads{2, 0};
  const Cpu cpu{threads, kernels("auto")};
  MemoryBudget budget{"host memory", uint64_t{1} << 30};
};

// The best tokens and the logits of one call, from as many passes as the scratch memory makes it,
// are those of plain logits.
class Head : public testing::TestWithParam<int> {};

TEST_P(Head, TellsTheBestOfSomeRowsAndTheLogitsOfOthers) {
  LastStage last(GetParam());
  const ModelConfig& config = last.checkpoint.config();
  std::vector<RunShape> runs = {{.logit_rows = 1}, {.logit_rows = 1, .device_slots = 2}};
  for (const int memory : {0, 99}) {
    for (const bool hesitates : {false, true}) {
      RunShape run{.logit_rows = 1, .weight_memory = memory, .whole_layers = false};
      run.keep_head = false;
      run.hesitates = hesitates;
      runs.push_back(run);
      run.device_slots = 2;
      runs.push_back(run);
    }
  }
  for (const RunShape& run : runs) {
    SCOPED_TRACE(describe(run));
    EngineStage stage(last.checkpoint, last.range, KvFormat::kF16, last.cpu, last.budget, run);
    constexpr int64_t kRows = 4100;  // more than a block of logits has for one panel
    const auto width = static_cast<size_t>(config.d_model);
    const auto vocabulary = static_cast<size_t>(config.vocab_size);
    Random random(5);
    for (const auto& [best_rows, logit_rows] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 0}, {0, 5}, {4, 3}, {10, 2}, {16, 0}, {kRows, 1}, {0, 0}}) {
      if (best_rows == kRows && run.device_slots + run.hesitates > 0) continue;  // takes seconds
      std::vector<float> hidden = random.floats((best_rows + logit_rows) * config.d_model);
      if (best_rows == 4) {
        std::fill_n(hidden.begin(), width, 0.0f);  // all logits are equal
        hidden[width] = kNan;
      }
      std::vector<float> same = hidden;
      std::vector<BestToken> best(static_cast<size_t>(best_rows));
      std::vector<float> logits;
      stage.engine.head(
          hidden.data(), best, logit_rows, [&](int64_t first, int64_t count, const float* some) {
            EXPECT_EQ(static_cast<size_t>(first) * vocabulary, logits.size());
            logits.insert(logits.end(), some, some + static_cast<size_t>(count) * vocabulary);
          });
      std::vector<float> expected(vocabulary);
      for (int64_t row = 0; row < best_rows + logit_rows; ++row) {
        if (best_rows == kRows && row % 500 != 0) continue;
        SCOPED_TRACE(row);
        test::logits_of(stage.engine, same.data() + row * config.d_model, 1, expected);
        if (row >= best_rows) {
          const auto at = static_cast<size_t>(row - best_rows) * vocabulary;
          ASSERT_LE(at + vocabulary, logits.size());
          EXPECT_TRUE(same_bits(expected, std::span(logits).subspan(at, vocabulary)));
          continue;
        }
        const BestToken& token = best[static_cast<size_t>(row)];
        EXPECT_EQ(token.has_nan, std::isnan(expected[0]));
        if (token.has_nan) continue;
        EXPECT_EQ(token.token, reference::argmax(expected));
        EXPECT_EQ(token.logit, expected[static_cast<size_t>(token.token)]);
      }
      if (best_rows == 4) {
        EXPECT_EQ(best[0].token, 0);
        EXPECT_TRUE(best[1].has_nan);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, Head, testing::Values(70000, 70001),
                         [](const auto& of) { return std::to_string(of.param); });

// Takes down how wide rows of logits are.
class WidthsOfLogits final : public CpuOps {
 public:
  using CpuOps::CpuOps;
  void find_best(const float* logits, int64_t first_row, int64_t rows, int64_t width,
                 int64_t id) override {
    widths.push_back(width);
    CpuOps::find_best(logits, first_row, rows, width, id);
  }
  std::vector<int64_t> widths;
};

TEST(StageEngine, WideRowsOfLogitsAreWholeSixteenBytesHoweverTheHeadIsCut) {
  for (const int vocabulary : {69985, 70001, 70004, 70016}) {
    LastStage last(vocabulary);
    const ModelConfig& config = last.checkpoint.config();
    WeightStore weights(last.checkpoint, last.range, last.budget, last.threads);
    KvStore kv({config.n_kv_heads, config.head_dim, KvFormat::kF16}, 1, 1, 1, last.budget);
    WidthsOfLogits ops(last.cpu);
    std::vector<float> scratch(StageEngine::scratch_bytes(config, last.range, 64, 1) /
                               sizeof(float));
    StageEngine engine(config, weights, weights, kv, ops, scratch, last.cpu, last.budget, 64);
    for (const int64_t rows : {1, 3, 7, 64}) {
      SCOPED_TRACE(testing::Message() << vocabulary << ", " << rows << " rows");
      ops.widths.clear();
      std::vector<float> hidden(static_cast<size_t>(rows * config.d_model), 0.5f);
      std::vector<BestToken> best(static_cast<size_t>(rows));
      engine.head(hidden.data(), best, 0, [](int64_t, int64_t, const float*) {});
      int64_t sum = 0;
      for (const int64_t width : ops.widths) {
        EXPECT_TRUE(width % 4 == 0 || width == vocabulary % kPanelRows) << width;
        sum += width;
      }
      EXPECT_EQ(sum, vocabulary);
    }
  }
}

// Logits of all rows would take 1.1 GB.
TEST(StageEngine, TheBestOfManyRowsTakeNoLogitsOfAll) {
  const std::string text = test::in_child([]() -> std::string {
    LastStage last;
    EngineStage stage(last.checkpoint, last.range, KvFormat::kF16, last.cpu, last.budget,
                      {.logit_rows = 1});
    std::vector<float> hidden(4100 * static_cast<size_t>(last.checkpoint.config().d_model), 0.5f);
    std::vector<BestToken> best(4100);
    const int64_t before = test::peak_bytes();
    stage.engine.head(hidden.data(), best, 0, [](int64_t, int64_t, const float*) {});
    const int64_t more = test::peak_bytes() - before;
    return more < 32 << 20 ? "" : "it took " + std::to_string(more) + " bytes";
  });
  EXPECT_EQ(text, "");
}

// A slot that is released and taken again holds nothing of the sequence before.
TEST(StageEngine, AReleasedSlotStartsAfresh) {
  const auto checkpoint = Checkpoint::open(model_path("qwen2-tied"));
  const ModelConfig& config = checkpoint->config();
  ThreadPool threads(1, 0);
  const Cpu cpu{threads, kernels("auto")};
  MemoryBudget budget("host memory", uint64_t{1} << 30);
  EngineStage stage(*checkpoint, {0, config.n_layers, true, true}, KvFormat::kF16, cpu, budget,
                    {.micro_batch_rows = 8});
  const auto sequences = random_sequences(config, {33, 20});
  const reference::Model model(*checkpoint, KvFormat::kF16);
  for (const auto& tokens : sequences) {
    const std::vector<BatchItem> batch = {{3, 0, std::ssize(tokens)}};
    std::vector<float> hidden(tokens.size() * static_cast<size_t>(config.d_model));
    stage.engine.embed(batch, tokens, hidden.data());
    stage.engine.sweep(batch, hidden.data());
    std::vector<float> expected = model.embed(tokens);
    model.layers(0, config.n_layers, expected);
    EXPECT_TRUE(same_bits(expected, hidden));
    stage.engine.release(3);
    EXPECT_EQ(stage.kv.free_pages(), 64);
  }
}

}  // namespace
}  // namespace headrace
