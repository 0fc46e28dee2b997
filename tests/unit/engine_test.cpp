// StageEngine against the plain whole model of tests/reference: the same bits, for every family and
// weight format, however the tokens are cut into steps, micro-batches and stages.
#include "engine/device/device_stage.h"
#include "engine/stage_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <random>

#include "engine/checkpoint/quantized_checkpoint.h"
#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"
#include "tests/reference/canonical.h"
#include "tests/reference/model.h"
#include "tests/unit/engine_logits.h"
#include "tests/unit/fault_queue.h"
#include "tests/unit/memory_checkpoint.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::MemoryCheckpoint;
using test::model_path;

// How an engine is run: nothing of this may change a bit.
struct RunShape {
  Target target = supported_targets().front();
  int threads = 1;
  int64_t chunk = 1000;  // tokens per sequence and step
  int64_t micro_batch_rows = 256;
  int64_t logit_rows = 64;
  std::vector<int> stages = {};  // first layers of all stages but the first
  // Percent of the way from the least memory that weights can do with to all of it; none: all of
  // them in memory, without an offload file.
  std::optional<int> weight_memory = {};
  uint64_t read_ahead = 1 << 20;
  bool whole_layers = true;  // the ring holds a layer's weights until all micro-batches have passed
  bool keep_head = true;
  // KV pages that stay in memory, the others go to disk; none: all of them, without a disk.
  std::optional<int> kv_memory_pages = {};
  int kv_staging_pages = 4;
  bool ahead = true;  // false: the serial schedule
  IoMethod io = IoMethod::kAuto;
  bool hesitates = false;  // weights that have come are seen late, then many of them at once
  int device_slots = 0;    // layers at once on a device that computes them; 0: the CPU does
};

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

std::string describe(const RunShape& run) {
  std::string text = std::string(target_name(run.target)) + ", " + std::to_string(run.threads) +
                     " threads, chunks of " + std::to_string(run.chunk) + ", micro-batches of " +
                     std::to_string(run.micro_batch_rows);
  for (const int cut : run.stages) text += ", cut before layer " + std::to_string(cut);
  if (run.weight_memory) {
    text += ", weights " + std::to_string(*run.weight_memory) + " % in memory, " +
            format_bytes(run.read_ahead) + " ahead" + (run.whole_layers ? ", whole layers" : "") +
            (run.keep_head ? "" : ", the head like a layer");
  }
  if (run.kv_memory_pages) {
    text += ", " + std::to_string(*run.kv_memory_pages) + " KV pages in memory, staging of " +
            std::to_string(run.kv_staging_pages);
  }
  if (!run.ahead) text += ", serial";
  if (run.device_slots > 0)
    text += ", a device with " + std::to_string(run.device_slots) + " slots";
  if (run.io == IoMethod::kThreads) text += ", threads read";
  if (run.hesitates) text += ", weights come late, then many at once";
  return text;
}

using Sequences = std::vector<std::vector<int32_t>>;

Sequences random_sequences(const ModelConfig& config, const std::vector<int>& lengths) {
  std::mt19937_64 random(7);
  Sequences sequences;
  for (const int length : lengths) {
    std::vector<int32_t>& tokens = sequences.emplace_back();
    for (int i = 0; i < length; ++i) {
      tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab_size)));
    }
  }
  return sequences;
}

// Hidden states after the last layer and logits, of all tokens of a sequence.
struct Outputs {
  std::vector<float> hidden, logits;
};

constexpr int kSlots = 8;
constexpr int64_t kKvPages = 64;
constexpr int64_t kMostRows = 16384;  // of a step

// One stage: its weights, its KV cache and its engine.
struct EngineStage {
  EngineStage(const Checkpoint& checkpoint, const StageRange& range, KvFormat kv_format,
              const Cpu& cpu, MemoryBudget& budget, const RunShape& run)
      : offload(open_offload(checkpoint, range, cpu, budget, run)),
        weights(make_weights(checkpoint, range, cpu, budget, run)),
        device(make_device(checkpoint, kv_format, cpu, budget, run)),
        kv(make_kv(checkpoint, range, kv_format, budget, run)),
        engine(make_engine(checkpoint.config(), cpu, budget, run)) {}

  // In float32, with nothing resident.
  std::unique_ptr<DeviceStage> make_device(const Checkpoint& checkpoint, KvFormat format,
                                           const Cpu& cpu, MemoryBudget& budget,
                                           const RunShape& run) {
    if (run.device_slots == 0) return nullptr;
    DeviceStage::Sizes sizes;
    sizes.weights.slots = run.device_slots;
    sizes.kv_pages = kKvPages;
    sizes.kv_format = format;
    sizes.step_rows = kMostRows;
    sizes.micro_batch_rows = run.micro_batch_rows;
    sizes.logit_rows = run.logit_rows;
    sizes.half = false;
    return std::make_unique<DeviceStage>(std::make_unique<test::FakeDevice>(17), checkpoint,
                                         weights, cpu.threads, budget, sizes);
  }

  StageEngine make_engine(const ModelConfig& config, const Cpu& cpu, MemoryBudget& budget,
                          const RunShape& run) {
    if (!device) {
      return StageEngine(config, weights, kv, cpu, budget, run.micro_batch_rows, run.logit_rows);
    }
    return StageEngine(config, weights, device->weights(), kv, device->ops(), device->scratch(),
                       cpu, budget, run.micro_batch_rows);
  }

  static std::unique_ptr<OffloadFile> open_offload(const Checkpoint& checkpoint,
                                                   const StageRange& range, const Cpu& cpu,
                                                   MemoryBudget& budget, const RunShape& run) {
    if (!run.weight_memory) return nullptr;
    return OffloadFile::open_or_build({testing::TempDir() + "offload", UINT64_MAX}, checkpoint,
                                      range, weight_layout(checkpoint, range), budget, cpu.threads,
                                      [](const std::string&) {});
  }

  WeightStore make_weights(const Checkpoint& checkpoint, const StageRange& range, const Cpu& cpu,
                           MemoryBudget& budget, const RunShape& run) const {
    if (!offload) return WeightStore(checkpoint, range, budget, cpu.threads);
    const WeightLayout layout = weight_layout(checkpoint, range);
    const uint64_t least = smallest_placement(layout, run.whole_layers);
    const uint64_t all = layout.image_bytes();
    const uint64_t bytes = least + (all - least) * static_cast<uint64_t>(*run.weight_memory) / 100;
    return WeightStore(
        checkpoint, range,
        {place_weights(layout, bytes, {run.read_ahead, run.whole_layers, run.keep_head}), *offload,
         [&run]() -> std::unique_ptr<IoQueue> {
           return std::make_unique<test::FaultQueue>(
               make_io_queue(8, run.io), test::FaultQueue::Faults{.hesitates = run.hesitates});
         },
         run.ahead},
        budget, cpu.threads);
  }

  KvStore make_kv(const Checkpoint& checkpoint, const StageRange& range, KvFormat format,
                  MemoryBudget& budget, const RunShape& run) const {
    const KvPageShape shape{checkpoint.config().n_kv_heads, checkpoint.config().head_dim, format};
    if (device) return KvStore(shape, range.layers(), kSlots, device->kv_on_device());
    if (!run.kv_memory_pages) return KvStore(shape, range.layers(), kKvPages, kSlots, budget);
    KvDiskOptions disk;
    disk.directory = testing::TempDir();
    disk.make_queue = [&run] { return make_io_queue(16, run.io); };
    disk.pages = kKvPages - *run.kv_memory_pages;
    disk.staging_pages = run.kv_staging_pages;
    disk.ahead = run.ahead;
    return KvStore(shape, range.layers(), *run.kv_memory_pages, kSlots, 4096, disk, budget);
  }

  std::unique_ptr<OffloadFile> offload;
  WeightStore weights;
  std::unique_ptr<DeviceStage> device;
  KvStore kv;
  StageEngine engine;
};

std::vector<Outputs> run_engine(const Checkpoint& checkpoint, const Sequences& sequences,
                                KvFormat kv_format, const RunShape& run) {
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
    stages.push_back(std::make_unique<EngineStage>(checkpoint, range, kv_format, cpu, budget, run));
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

void expect_reference_bits(const Checkpoint& checkpoint, const std::vector<RunShape>& runs,
                           const std::vector<int>& lengths = {1, 40, 17, 3}) {
  const Sequences sequences = random_sequences(checkpoint.config(), lengths);
  for (const KvFormat kv : {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4}) {
    const reference::Model model(checkpoint, kv);
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
    for (const RunShape& run : runs) {
      SCOPED_TRACE(describe(run) + ", " + kv_format_name(kv));
      const std::vector<Outputs> got = run_engine(checkpoint, sequences, kv, run);
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

INSTANTIATE_TEST_SUITE_P(
    Tiny, EngineOfModel,
    testing::Values("llama-gqa", "llama-linear-bias", "llama-rope3", "opt-post", "opt-pre",
                    "qwen2-tied", "qwen2-untied", "llama-rope3.F32.gguf", "llama-rope3.F16.gguf",
                    "llama-rope3.Q8_0.gguf", "llama-rope3.Q4_0.gguf", "llama-rope3.Q4_1.gguf",
                    "llama-rope3.Q5_0.gguf", "llama-rope3.Q5_1.gguf", "synthetic:tiny-llama",
                    "synthetic:tiny-llama:q4", "synthetic:tiny-qwen2:q8", "synthetic:tiny-opt:f32"),
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

// The best tokens and the logits of one call, from as many passes as the scratch memory makes it,
// are those of plain logits.
TEST(StageEngine, TheHeadTellsTheBestOfSomeRowsAndTheLogitsOfOthers) {
  ModelConfig config = test::small_llama();
  config.vocab_size = 70000;
  const MemoryCheckpoint checkpoint(config, {});
  ThreadPool threads(2, 0);
  const Cpu cpu{threads, kernels("auto")};
  MemoryBudget budget("host memory", uint64_t{1} << 30);
  const StageRange range{1, 2, false, true};
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
    EngineStage stage(checkpoint, range, KvFormat::kF16, cpu, budget, run);
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
