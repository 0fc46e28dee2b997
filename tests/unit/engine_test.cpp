// StageEngine against the plain whole model of tests/reference: the same bits, for every family and
// weight format, however the tokens are cut into steps, micro-batches and stages.
#include "engine/stage_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/checkpoint/quantized_checkpoint.h"
#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"
#include "tests/reference/model.h"
#include "tests/unit/engine_logits.h"
#include "tests/unit/engine_stage.h"
#include "tests/unit/memory_checkpoint.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::describe;
using test::EngineStage;
using test::MemoryCheckpoint;
using test::model_path;
using test::random_sequences;
using test::RunShape;
using test::Sequences;

std::vector<RunShape> all_runs(int layers) {
  std::vector<RunShape> runs;
  for (const Target target : supported_targets()) runs.push_back({.target = target});
  for (const int64_t chunk : {1, 7, 16, 17}) runs.push_back({.chunk = chunk});
  for (const int64_t rows : {1, 5, 16}) runs.push_back({.threads = 2, .micro_batch_rows = rows});
  runs.push_back({.threads = 3, .chunk = 7, .micro_batch_rows = 5});
  for (int cut = 1; cut < layers; ++cut) runs.push_back({.chunk = 9, .stages = {cut}});
  for (const int slots : {2, 3}) {
    runs.push_back({.device_slots = slots});
    runs.push_back({.chunk = 7, .micro_batch_rows = 5, .stages = {1}, .device_slots = slots});
  }
  return runs;
}

std::vector<RunShape> offloaded_runs(int layers) {
  std::vector<RunShape> runs;
  for (const int memory : {0, 30, 60, 95, 100}) {
    for (const uint64_t ahead : {uint64_t{0}, kReadBlock, 8 * kReadBlock}) {
      runs.push_back({.chunk = 9, .weight_memory = memory, .read_ahead = ahead});
      runs.push_back({.threads = 2,
                      .chunk = 9,
                      .weight_memory = memory,
                      .read_ahead = ahead,
                      .whole_layers = false,
                      .keep_head = false,
                      .ahead = memory != 30});
    }
  }
  for (const IoMethod io : {IoMethod::kAuto, IoMethod::kThreads}) {
    for (const bool ahead : {true, false}) {
      runs.push_back({.threads = 2,
                      .chunk = 7,
                      .micro_batch_rows = 5,
                      .weight_memory = 20,
                      .kv_memory_pages = 3,
                      .ahead = ahead,
                      .io = io});
    }
  }
  for (const int pages : {0, 1, 5, 64}) {
    for (const int64_t chunk : {1, 16, 1000}) {
      for (const int64_t rows : {5, 256}) {
        runs.push_back({.chunk = chunk,
                        .micro_batch_rows = rows,
                        .kv_memory_pages = pages,
                        .kv_staging_pages = rows == 5 ? 3 : 9});
      }
    }
  }
  for (int cut = 1; cut < layers; ++cut) {
    runs.push_back({.chunk = 9, .stages = {cut}, .weight_memory = 0, .kv_memory_pages = 0});
  }
  for (const int memory : {0, 60}) {
    for (const bool keep_head : {true, false}) {
      runs.push_back({.chunk = 9,
                      .micro_batch_rows = 16,
                      .weight_memory = memory,
                      .whole_layers = false,
                      .keep_head = keep_head,
                      .device_slots = 2});
    }
  }
  return runs;
}

// Hidden states after the last layer and logits, of all tokens of a sequence.
struct Outputs {
  std::vector<float> hidden, logits;
};

std::vector<Outputs> run_engine(const Checkpoint& checkpoint, const Sequences& sequences,
                                KvFormat kv_format, const RunShape& run, bool int8 = false) {
  const ModelConfig& config = checkpoint.config();
  const auto width = static_cast<size_t>(config.d_model);
  ThreadPool threads(run.threads, 0);
  const Cpu cpu{threads, kernels(run.target)};
  MemoryBudget budget("host memory", uint64_t{1} << 32);
  std::vector<int> cuts = run.stages;
  cuts.insert(cuts.begin(), 0);
  cuts.push_back(config.n_layers);
  std::vector<std::unique_ptr<EngineStage>> stages;
  for (size_t s = 0; s + 1 < cuts.size(); ++s) {
    const StageRange range{cuts[s], cuts[s + 1], s == 0, s + 2 == cuts.size()};
    stages.push_back(
        std::make_unique<EngineStage>(checkpoint, range, kv_format, cpu, budget, run, int8));
  }

  std::vector<Outputs> outputs(sequences.size());
  for (int64_t done = 0;; done += run.chunk) {
    std::vector<BatchItem> batch;
    std::vector<int32_t> tokens;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const int64_t rows = std::min<int64_t>(run.chunk, std::ssize(sequences[s]) - done);
      if (rows <= 0) continue;
      // Slots in another order than the sequences.
      batch.push_back({static_cast<int>(7 - s), done, rows});
      tokens.insert(tokens.end(), sequences[s].begin() + done, sequences[s].begin() + done + rows);
    }
    if (batch.empty()) break;
    std::vector<float> hidden(tokens.size() * width, kNan);
    std::vector<float> logits(tokens.size() * static_cast<size_t>(config.vocab_size), kNan);
    stages.front()->engine.embed(batch, tokens, hidden.data());
    for (const auto& stage : stages) stage->engine.sweep(batch, hidden.data());
    std::vector<float> overwritten = hidden;
    test::logits_of(stages.back()->engine, overwritten.data(), std::ssize(tokens), logits);
    auto next_hidden = hidden.begin();
    auto next_logits = logits.begin();
    for (const BatchItem& item : batch) {
      Outputs& out = outputs[static_cast<size_t>(7 - item.slot)];
      out.hidden.insert(out.hidden.end(), next_hidden, next_hidden + item.rows * config.d_model);
      out.logits.insert(out.logits.end(), next_logits, next_logits + item.rows * config.vocab_size);
      next_hidden += item.rows * config.d_model;
      next_logits += item.rows * config.vocab_size;
    }
  }
  return outputs;
}

std::vector<Outputs> reference_outputs(const Checkpoint& checkpoint, const Sequences& sequences,
                                       KvFormat kv, bool int8) {
  const reference::Model model(checkpoint, kv, int8);
  std::vector<Outputs> expected;
  for (const std::vector<int32_t>& tokens : sequences) {
    Outputs out;
    out.hidden = model.embed(tokens);
    model.layers(0, checkpoint.config().n_layers, out.hidden);
    out.logits = model.logits(out.hidden);
    // A model that has died out or overflowed would prove nothing.
    const auto ordinary = [](float v) { return std::isfinite(v) && v != 0.0f; };
    EXPECT_TRUE(std::all_of(out.logits.begin(), out.logits.end(), ordinary));
    expected.push_back(std::move(out));
  }
  return expected;
}

void expect_reference_bits(const Checkpoint& checkpoint, const std::vector<RunShape>& runs,
                           const std::vector<int>& lengths = {1, 40, 17, 3}, bool int8 = false) {
  const Sequences sequences = random_sequences(checkpoint.config(), lengths);
  for (const KvFormat kv : {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4}) {
    const auto expected = reference_outputs(checkpoint, sequences, kv, int8);
    for (const RunShape& run : runs) {
      SCOPED_TRACE(describe(run) + ", " + kv_format_name(kv));
      const std::vector<Outputs> got = run_engine(checkpoint, sequences, kv, run, int8);
      for (size_t s = 0; s < sequences.size(); ++s) {
        ASSERT_TRUE(same_bits(expected[s].hidden, got[s].hidden)) << "hidden, sequence " << s;
        ASSERT_TRUE(same_bits(expected[s].logits, got[s].logits)) << "logits, sequence " << s;
      }
    }
  }
}

class EngineOfModel : public testing::TestWithParam<std::string> {};

TEST_P(EngineOfModel, EqualsTheReferenceBitForBit) {
  const std::string& name = GetParam();
  const auto checkpoint =
      Checkpoint::open(name.starts_with("synthetic:") ? name : model_path(name));
  expect_reference_bits(*checkpoint, all_runs(checkpoint->config().n_layers));
}

TEST_P(EngineOfModel, EqualsTheReferenceWhateverIsOnDisk) {
  const std::string& name = GetParam();
  const auto checkpoint =
      Checkpoint::open(name.starts_with("synthetic:") ? name : model_path(name));
  expect_reference_bits(*checkpoint, offloaded_runs(checkpoint->config().n_layers),
                        {1, 40, 17, 3, 16, 33});
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Tiny, EngineOfModel,
                         testing::Values("llama-gqa", "llama-linear-bias", "llama-rope3",
                                         "opt-post", "opt-pre", "qwen2-tied", "qwen2-untied",
                                         "qwen3-tied", "llama-rope3.F32.gguf",
                                         "llama-rope3.F16.gguf", "llama-rope3.Q8_0.gguf",
                                         "llama-rope3.Q4_0.gguf", "llama-rope3.Q4_1.gguf",
                                         "llama-rope3.Q5_0.gguf", "llama-rope3.Q5_1.gguf",
                                         "synthetic:tiny-llama", "synthetic:tiny-llama:q4",
                                         "synthetic:tiny-qwen2:q8", "synthetic:tiny-opt:f32"),
                         test_name);

// Weights quantised as they are read.
TEST(EngineOfQuantised, EqualsTheReferenceBitForBit) {
  for (const std::string name : {"llama-gqa", "opt-pre"}) {
    for (const WeightFormat weights : {WeightFormat::kQ8, WeightFormat::kQ4}) {
      SCOPED_TRACE(name + ", " + weight_format_name(weights));
      const auto checkpoint = quantized(Checkpoint::open(model_path(name)), weights);
      expect_reference_bits(*checkpoint, all_runs(checkpoint->config().n_layers));
    }
  }
}

// Linear layers in integers. A device does not compute so.
std::vector<RunShape> runs_in_integers(int layers) {
  std::vector<RunShape> runs = all_runs(layers);
  std::erase_if(runs, [](const RunShape& run) { return run.device_slots > 0; });
  for (const int memory : {0, 60}) {
    runs.push_back({.threads = 2,
                    .chunk = 9,
                    .micro_batch_rows = 5,
                    .weight_memory = memory,
                    .kv_memory_pages = 3});
  }
  return runs;
}

TEST(EngineInIntegers, EqualsTheReferenceBitForBit) {
  for (const std::string name :
       {"llama-rope3.Q4_1.gguf", "synthetic:tiny-qwen2:q8", "llama-gqa", "opt-pre"}) {
    SCOPED_TRACE(name);
    auto checkpoint = Checkpoint::open(name.starts_with("synthetic:") ? name : model_path(name));
    if (name == "llama-gqa") checkpoint = quantized(std::move(checkpoint), WeightFormat::kQ8);
    if (name == "opt-pre") checkpoint = quantized(std::move(checkpoint), WeightFormat::kQ4);
    expect_reference_bits(*checkpoint, runs_in_integers(checkpoint->config().n_layers),
                          {1, 40, 17, 3}, true);
  }
}

// Norms after the blocks, projections of the embedding, and layers that read the same rows with
// codes and without.
TEST(EngineInIntegers, EqualsTheReferenceWhereFormatsAreMixed) {
  ModelConfig config = test::small_llama();
  config.post_norm = true;
  config.has_final_norm = false;
  config.d_model = 64;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.d_ffn = 96;
  MemoryCheckpoint::Options options;
  options.matrix_format = [](Role role, int layer) {
    if (role == Role::kProjectIn || role == Role::kProjectOut) return DType::kQ8_0;
    if (role == Role::kK || role == Role::kGate) return layer == 0 ? DType::kF16 : DType::kQ5_1;
    return layer == 0 ? DType::kQ8_0 : DType::kQ4_0;
  };
  const MemoryCheckpoint checkpoint(config, options);
  expect_reference_bits(checkpoint, runs_in_integers(config.n_layers), {1, 40, 17, 3}, true);
}

// More rows of hidden states for the head than there is room for in integers, and other bits than
// in float32.
TEST(EngineInIntegers, HeadOfManyRows) {
  const auto checkpoint = Checkpoint::open("synthetic:tiny-llama:q8");
  const Sequences sequences = random_sequences(checkpoint->config(), {60, 60, 50});
  const auto expected = reference_outputs(*checkpoint, sequences, KvFormat::kF16, true);
  for (const int64_t rows : {1, 3, 64}) {
    const RunShape run{.micro_batch_rows = rows, .logit_rows = 100};
    const auto got = run_engine(*checkpoint, sequences, KvFormat::kF16, run, true);
    for (size_t s = 0; s < sequences.size(); ++s) {
      ASSERT_TRUE(same_bits(expected[s].logits, got[s].logits)) << rows << ", sequence " << s;
    }
  }
  const auto floats = run_engine(*checkpoint, sequences, KvFormat::kF16, {}, false);
  EXPECT_FALSE(same_bits(expected[0].logits, floats[0].logits));
}

class EngineOfFormat : public testing::TestWithParam<DType> {};

// Every stored format as all matrices of a model, rows of Q and K interleaved as in GGUF files.
TEST_P(EngineOfFormat, EqualsTheReferenceBitForBit) {
  ModelConfig config = test::small_llama();
  config.d_model = config.d_embed = 256;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 64;
  config.d_ffn = 256;
  config.qkv_bias = true;
  MemoryCheckpoint::Options options;
  options.matrix_format = [](Role, int) { return GetParam(); };
  options.vector_format = GetParam() == DType::kBF16 ? DType::kBF16 : DType::kF32;
  options.interleaved = true;
  const MemoryCheckpoint checkpoint(config, options);
  std::vector<RunShape> runs = {{.threads = 2, .chunk = 7}};
  for (const Target target : supported_targets()) runs.push_back({.target = target});
  expect_reference_bits(checkpoint, runs, {19, 2});
  expect_reference_bits(checkpoint, runs, {19, 2}, true);
}

std::string format_name(const testing::TestParamInfo<DType>& info) {
  return dtype_name(info.param);
}

INSTANTIATE_TEST_SUITE_P(Formats, EngineOfFormat,
                         testing::ValuesIn(all_dtypes().begin(), all_dtypes().end()), format_name);

// A head and layers that are longer than the ring, on one stage and on the last of two.
TEST(StageEngine, WhatIsLongerThanTheRingComesThroughIt) {
  for (const bool tied : {true, false}) {
    ModelConfig config = test::small_llama();
    config.vocab_size = 70000;
    config.d_ffn = 6000;
    config.tied_head = tied;
    MemoryCheckpoint::Options options;
    options.matrix_format = [](Role, int) { return DType::kF32; };
    const MemoryCheckpoint checkpoint(config, options);
    const WeightLayout layout = weight_layout(checkpoint, {0, 2, true, true});
    const WeightPlacement least = place_weights(layout, 0, {.whole_layers = false});
    for (const WeightPiece& piece : pieces_of(layout, least)) EXPECT_GT(piece.bytes, least.ring);
    std::vector<RunShape> runs;
    for (const int memory : {0, 10, 50, 80, 90, 99}) {
      runs.push_back({.weight_memory = memory});
      runs.push_back({.weight_memory = memory, .whole_layers = false, .keep_head = false});
    }
    runs.push_back({.weight_memory = 0, .whole_layers = false, .ahead = false});
    runs.push_back({.weight_memory = 0, .ahead = false});
    runs.push_back({.micro_batch_rows = 5, .weight_memory = 0});
    runs.push_back({.stages = {1}, .weight_memory = 0});
    expect_reference_bits(checkpoint, runs, {40, 2});
  }
}

}  // namespace
}  // namespace headrace
