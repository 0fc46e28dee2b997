// A whole stage on a device that does its work in any order that streams and events allow: in
// float32 it has the CPU's bits, in f16 the same bits however it is placed and cut, and near those.
// So it is with the CPU's help, but that f16 is then only near.
#include "engine/device/device_stage.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <random>
#include <span>

#include "engine/stage_engine.h"
#include "tests/device/fake_device.h"
#include "tests/ops/op_test.h"
#include "tests/unit/engine_logits.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

constexpr int kSlots = 4;
constexpr int64_t kPages = 24, kMostRows = 64;
constexpr int64_t kSingle = 5;  // tokens at the end that come one by one

struct StageRun {
  const char* name;
  int64_t chunk = 16;
  int64_t micro_batch_rows = kMostRows;
  int resident = 100;  // percent of the layers; the head, too, if all of them
  int64_t host_pages = 0;
  int64_t window = 9;
  double host_share = 0;
  int helped = 0;      // single rows that the CPU attends to, of all; -1: some
  int slots = kSlots;  // of the plan, which says how long sequences are
  int64_t disk_pages = 0;
  bool ahead = true;                    // of the disk
  int64_t hidden_rows = 0;              // on the device at once; 0: all
  int passing = DevicePlacement::kAll;  // matrices of a layer that is not resident
};

constexpr StageRun kRuns[] = {
    {"all there"},
    {"small chunks and micro-batches", 7, 5},
    {"all passing through", 16, 16, 0},
    {"more rows than few", 40},
    {"more rows than few, passing through", 40, kMostRows, 0},
    {"half of it there", 9, 16, 50},
    {"KV pages in host memory", 16, kMostRows, 100, kPages},
    {"some KV pages in host memory", 7, 16, 50, kPages - 5},
    {"sequences cut by micro-batches, KV pages in host memory", 16, 5, 100, kPages},
    {"room for one sequence's pages at a time", 16, 16, 0, kPages - 1, 3},
    {.name = "of each layer a part passing through", .resident = 0, .passing = 4},
    {.name = "of some layers a part passing through", .chunk = 40, .resident = 50, .passing = 3},
    {.name = "hidden states pass", .micro_batch_rows = 5, .hidden_rows = 15},
    {.name = "hidden states and weights pass, and KV pages",
     .micro_batch_rows = 8,
     .resident = 0,
     .host_pages = kPages,
     .hidden_rows = 32},
    {.name = "hidden states of steps that are a row too long pass",
     .micro_batch_rows = 16,
     .resident = 50,
     .hidden_rows = 48},
    {.name = "hidden states pass in micro-batches of one row",
     .chunk = 7,
     .micro_batch_rows = 1,
     .hidden_rows = 3},
};

constexpr StageRun kDiskRuns[] = {
    {.name = "sequences cut by micro-batches, KV pages on device and disk",
     .micro_batch_rows = 5,
     .resident = 50,
     .disk_pages = kPages - 5},
    {.name = "all KV pages on disk", .disk_pages = kPages},
    {.name = "room for one sequence's pages, which come from disk when they are wanted",
     .chunk = 7,
     .window = 3,
     .disk_pages = kPages,
     .ahead = false},
};

constexpr int kAllRows = 4 * kSingle + 1;  // one prompt is a single row, too
constexpr StageRun kHelpedRuns[] = {
    {"the CPU attends to all", 16, kMostRows, 100, kPages, 9, 1.0, kAllRows},
    {"the CPU attends to some", 16, kMostRows, 100, kPages, 9, 0.5, -1},
    {"the CPU attends to what is between others", 16, kMostRows, 100, kPages, 9, 0.25, -1},
    {"all there, nothing to help with", 16, kMostRows, 100, 0, 9, 1.0, 0},
    {"a share too small for a sequence", 16, kMostRows, 100, kPages, 9, 0.01, 0},
    {"weights pass through", 16, 16, 0, kPages, 9, 0.6, -1},
    {"a small window", 16, 16, 50, kPages, 3, 0.4, -1},
    {"micro-batches of three rows", 5, 3, 0, kPages, 3, 0.7, -1},
    {"micro-batches of one row", 7, 1, 50, kPages, 5, 1.0, kAllRows},
    {"too few pages on the device for a sequence", 7, 16, 50, kPages - 5, 9, 1.0, kAllRows},
    {"pages on the device for two sequences", 7, 16, 50, kPages - 13, 9, 1.0, 2 * kSingle},
    {"a sequence in both", 7, 16, 50, kPages - 2, 9, 1.0, 2 * kSingle, kPages},
    {.name = "hidden states pass",
     .micro_batch_rows = 1,
     .host_pages = kPages,
     .host_share = 0.5,
     .helped = -1,
     .hidden_rows = 3},
};

// Counts rows on their way.
class CountedRows final : public HostRows {
 public:
  CountedRows(const test::FakeDevice& device, HostRows* rows) : device_(device), rows_(rows) {}
  void send(std::span<const AttentionSequence> sequences, const float* q, const float* k,
            const float* v) override {
    sent_ += std::ssize(sequences);
    before_ = device_.attentions();
    rows_->send(sequences, q, k, v);
  }
  Rows receive() override {
    beside_ += device_.attentions() > before_;
    return rows_->receive();
  }
  void send_back(Operand* out) override { rows_->send_back(out); }
  int64_t sent() const { return sent_; }
  // How often the device had attention of its own queued when the CPU began.
  int64_t beside() const { return beside_; }

 private:
  const test::FakeDevice& device_;
  HostRows* rows_;
  int64_t sent_ = 0, before_ = 0, beside_ = 0;
};

// Counts steps whose hidden states pass.
class CountedPassage final : public HiddenPassage {
 public:
  explicit CountedPassage(HiddenPassage* passage) : passage_(passage) {}
  int64_t rows_at_once() const override { return passage_->rows_at_once(); }
  void begin_sweep(float* host, std::vector<int64_t> pieces, int layers, bool are_made) override {
    ++sweeps_;
    passage_->begin_sweep(host, std::move(pieces), layers, are_made);
  }
  float* acquire() override { return passage_->acquire(); }
  void release() override { passage_->release(); }
  void end_sweep() override { passage_->end_sweep(); }
  int sweeps() const { return sweeps_; }

 private:
  HiddenPassage* passage_;
  int sweeps_ = 0;
};

// Ways and formats do not know of each other: one format goes all ways, the other a third of them.
std::vector<StageRun> ways(std::span<const StageRun> all, KvFormat format) {
  std::vector<StageRun> some;
  for (size_t i = 0; i < all.size(); i += format == KvFormat::kF16 ? 1 : 3) some.push_back(all[i]);
  return some;
}

class DeviceStageTest : public testing::TestWithParam<const char*> {
 protected:
  DeviceStageTest()
      : checkpoint_(Checkpoint::open(std::string(GetParam()).starts_with("synthetic:")
                                         ? GetParam()
                                         : test::model_path(GetParam()))),
        config_(checkpoint_->config()),
        range_{0, config_.n_layers, true, true},
        weights_(*checkpoint_, range_, budget_, threads_) {
    hidden_.resize(static_cast<size_t>(kSlots * kMostRows * config_.d_model));
    again_ = hidden_;
    std::mt19937_64 random(3);
    for (const int length : {40, 6, 33, 21}) {
      auto& tokens = sequences_.emplace_back();
      for (int i = 0; i < length; ++i) {
        tokens.push_back(
            static_cast<int32_t>(random() % static_cast<uint64_t>(config_.vocab_size)));
      }
    }
  }

  KvPageShape page(KvFormat format) const { return {config_.n_kv_heads, config_.head_dim, format}; }

  // Logits of the tokens that come one by one, sequence after sequence for each.
  std::vector<float> logits(StageEngine& engine, int64_t chunk) {
    std::vector<float> all;
    const auto step = [&](int64_t rows_at_most, auto begins) {
      std::vector<BatchItem> batch;
      std::vector<int32_t> tokens;
      std::vector<int64_t> last;
      for (size_t s = 0; s < sequences_.size(); ++s) {
        const int64_t first = begins(sequences_[s]);
        const int64_t prompt = std::ssize(sequences_[s]) - kSingle;
        const int64_t end = rows_at_most == 1 ? first + 1 : std::min(prompt, first + rows_at_most);
        if (end <= first) continue;
        batch.push_back({static_cast<int>(s), first, end - first});
        tokens.insert(tokens.end(), sequences_[s].begin() + first, sequences_[s].begin() + end);
        last.push_back(std::ssize(tokens) - 1);
      }
      if (batch.empty()) return false;
      std::fill(hidden_.begin(), hidden_.end(), kNan);
      engine.embed(batch, tokens, hidden_.data());
      engine.sweep(batch, hidden_.data(), last);
      std::vector<float> of_step(last.size() * static_cast<size_t>(config_.vocab_size), kNan);
      std::copy(hidden_.begin(), hidden_.end(), again_.begin());
      test::logits_of(engine, again_.data(), std::ssize(last), of_step);
      // What is found without logits in memory is the largest of them.
      std::vector<BestToken> best(last.size());
      engine.head(hidden_.data(), best, 0, {});
      for (size_t i = 0; i < best.size(); ++i) {
        const auto begin = of_step.begin() + static_cast<int64_t>(i) * config_.vocab_size;
        const auto most = std::max_element(begin, begin + config_.vocab_size);
        EXPECT_EQ(most - begin, best[i].token);
        EXPECT_EQ(*most, best[i].logit);
      }
      if (rows_at_most == 1) all.insert(all.end(), of_step.begin(), of_step.end());
      return true;
    };
    for (int64_t done = 0;; done += chunk) {
      if (!step(chunk, [&](const auto&) { return done; })) break;
    }
    for (int64_t left = kSingle; left > 0; --left) {
      step(1, [&](const auto& sequence) { return std::ssize(sequence) - left; });
    }
    for (int slot = 0; slot < kSlots; ++slot) engine.release(slot);
    return all;
  }

  std::vector<float> on_cpu(KvFormat format) {
    KvStore kv(page(format), config_.n_layers, kPages, kSlots, budget_);
    StageEngine engine(config_, weights_, kv, cpu_, budget_, kMostRows, kSlots);
    return logits(engine, 16);
  }

  std::vector<float> on_device(const StageRun& run, bool half, KvFormat format,
                               test::FakeDevice::Fault fault = test::FakeDevice::Fault::kNone) {
    DeviceStage::Sizes sizes;
    sizes.half = half;
    sizes.kv_format = format;
    sizes.kv_pages = kPages;
    sizes.kv_host_pages = run.host_pages;
    sizes.kv_disk_pages = run.disk_pages;
    sizes.kv_window = run.window;
    sizes.host_share = run.host_share;
    sizes.slots = run.slots;
    sizes.step_rows = kSlots * kMostRows;
    sizes.micro_batch_rows = run.micro_batch_rows;
    sizes.hidden_rows = run.hidden_rows;
    sizes.logit_rows = kSlots;
    sizes.weights.half_rows = half;
    const WeightLayout& layout = weights_.layout();
    sizes.weights.passing.assign(layout.units.size(),
                                 run.resident == 100 ? 0 : DevicePlacement::kAll);
    for (int l = 0; l < config_.n_layers; ++l) {
      const bool stays = l * 100 < run.resident * config_.n_layers;
      sizes.weights.passing[layout.layer_unit(l)] = stays ? 0 : run.passing;
    }
    sizes.weights.slots = run.resident == 100 ? 0 : 2;
    auto owner = std::make_unique<test::FakeDevice>(random_(), fault);
    const test::FakeDevice& device = *owner;
    // Where parts of layers stay the host does without them.
    std::optional<WeightStore> rest;
    if (run.passing != DevicePlacement::kAll) {
      std::vector<uint64_t> ends;
      for (size_t u = 0; u < layout.units.size(); ++u) {
        ends.push_back(DeviceWeights::host_end(layout, sizes.weights, u));
      }
      rest.emplace(*checkpoint_, range_, budget_, threads_, false, ends);
    }
    WeightStore& weights = rest ? *rest : weights_;
    const KvDiskAccess disk{testing::TempDir(), [] { return make_io_queue(16); }, run.ahead};
    DeviceStage stage(std::move(owner), *checkpoint_, weights, threads_, budget_, sizes, disk);
    KvStore kv(page(format), config_.n_layers, kSlots, stage.kv_on_device(), stage.kv_window());
    HostAttention host = stage.host_attention();
    CountedRows rows(device, host.rows);
    if (host.rows) host.rows = &rows;
    CountedPassage passage(stage.hidden_passage());
    StageEngine engine(config_, weights, stage.weights(), kv, stage.ops(), stage.scratch(), cpu_,
                       budget_, run.micro_batch_rows, host,
                       stage.hidden_passage() ? &passage : nullptr);
    for (std::vector<float>* const buffer : {&hidden_, &again_}) {
      stage.pin(std::as_writable_bytes(std::span(*buffer)));
    }
    const uint64_t unpinned = device.unpinned();
    logits(engine, run.chunk);  // nothing is left of it, but what can be repeated
    const uint64_t whole_waits = device.whole_waits();
    std::vector<float> all = logits(engine, run.chunk);
    EXPECT_EQ(device.unpinned(), unpinned);  // the host waits for no copy
    EXPECT_EQ(device.whole_waits(), whole_waits);
    EXPECT_EQ(passage.sweeps() > 0, run.hidden_rows > 0);
    const int64_t helped = rows.sent() / config_.n_layers / 2;
    if (run.helped >= 0) {
      EXPECT_EQ(helped, run.helped);
    } else {
      EXPECT_GT(helped, 0);
      EXPECT_LT(helped, kAllRows);
      // Some micro-batches have rows for both, unless a row is one.
      EXPECT_EQ(rows.beside() > 0, run.micro_batch_rows > 1);
    }
    return all;
  }
  // How far they are from what is exact, by the length of that.
  static double distance(std::span<const float> exact, std::span<const float> near) {
    EXPECT_EQ(exact.size(), near.size());
    double squares = 0, differences = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      squares += std::pow(static_cast<double>(exact[i]), 2);
      differences += std::pow(static_cast<double>(exact[i]) - static_cast<double>(near[i]), 2);
    }
    return std::sqrt(differences / squares);
  }

  std::mt19937_64 random_{5};
  std::unique_ptr<Checkpoint> checkpoint_;
  const ModelConfig& config_;
  StageRange range_;
  ThreadPool threads_{2, 0};
  Cpu cpu_{threads_, kernels("auto")};
  MemoryBudget budget_{"host memory", uint64_t{2} << 30};
  WeightStore weights_;
  std::vector<std::vector<int32_t>> sequences_;
  // Of a step's rows, and of those whose logits are wanted.
  std::vector<float> hidden_, again_;
};

TEST_P(DeviceStageTest, Float32HasTheBitsOfTheCpu) {
  for (const KvFormat format : {KvFormat::kF16, KvFormat::kQ8}) {
    const std::vector<float> expected = on_cpu(format);
    for (const StageRun& run : ways(kRuns, format)) {
      SCOPED_TRACE(run.name);
      ASSERT_TRUE(same_bits(expected, on_device(run, false, format)));
    }
  }
}

TEST_P(DeviceStageTest, PagesOnDiskHaveTheSameBits) {
  const std::vector<float> expected = on_cpu(KvFormat::kQ8);
  for (const StageRun& run : kDiskRuns) {
    SCOPED_TRACE(run.name);
    ASSERT_TRUE(same_bits(expected, on_device(run, false, KvFormat::kQ8)));
  }
  ASSERT_TRUE(same_bits(on_device(kRuns[0], true, KvFormat::kF16),
                        on_device(kDiskRuns[0], true, KvFormat::kF16)));
}

TEST_P(DeviceStageTest, HalfHasTheSameBitsHoweverItRuns) {
  for (const KvFormat format : {KvFormat::kF16, KvFormat::kQ8}) {
    const std::vector<float> exact = on_cpu(format);
    const std::vector<float> expected = on_device(kRuns[0], true, format);
    for (const StageRun& run : ways(kRuns, format)) {
      SCOPED_TRACE(run.name);
      ASSERT_TRUE(same_bits(expected, on_device(run, true, format)));
    }
    EXPECT_LT(distance(exact, expected), 0.02);
    EXPECT_GT(distance(exact, expected), 0);
  }
}

TEST_P(DeviceStageTest, Float32HasTheBitsOfTheCpuThatHelps) {
  for (const KvFormat format : {KvFormat::kF16, KvFormat::kQ8}) {
    const std::vector<float> expected = on_cpu(format);
    for (const StageRun& run : ways(kHelpedRuns, format)) {
      SCOPED_TRACE(run.name);
      ASSERT_TRUE(same_bits(expected, on_device(run, false, format)));
    }
  }
}

TEST_P(DeviceStageTest, HalfIsNearTheCpuThatHelps) {
  const std::vector<float> exact = on_cpu(KvFormat::kF16);
  for (const StageRun& run : kHelpedRuns) {
    SCOPED_TRACE(run.name);
    EXPECT_LT(distance(exact, on_device(run, true, KvFormat::kF16)), 0.02);
  }
  const StageRun& some = kHelpedRuns[1];
  const std::vector<float> q8 = on_device(some, true, KvFormat::kQ8);
  EXPECT_LT(distance(on_cpu(KvFormat::kQ8), q8), 0.02);
  EXPECT_TRUE(same_bits(q8, on_device(some, true, KvFormat::kQ8))) << "the same rows, twice";
}

INSTANTIATE_TEST_SUITE_P(Models, DeviceStageTest,
                         testing::Values("llama-gqa", "opt-pre", "opt-post", "qwen2-tied",
                                         "qwen2-untied", "qwen3-tied", "synthetic:tiny-llama:q4",
                                         "synthetic:tiny-opt:f32"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return !std::isalnum(c); },
                               '_');
                           return name;
                         });

}  // namespace
}  // namespace headrace
