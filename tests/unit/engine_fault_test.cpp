// A disk that fails in the middle of a run: the engine says which file and where, and goes away
// while other transfers are still under way.
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <string>

#include "engine/error.h"
#include "engine/stage_engine.h"
#include "tests/unit/engine_logits.h"
#include "tests/unit/fault_queue.h"

namespace headrace {
namespace {

using test::FaultQueue;

constexpr int kSlots = 4;
constexpr int kSteps = 4;
constexpr int64_t kChunk = 20;  // rows per sequence and step: more than a KV page
constexpr uint64_t kBudget = uint64_t{1} << 28;

struct Faults {
  FaultQueue::Faults weights, kv;
  IoMethod io = IoMethod::kAuto;
  bool ahead = true;
};

// What went wrong in four steps of all sequences; empty if nothing did. All weights that can be are
// streamed, all KV pages that can be are on disk.
std::string run_with(const Faults& faults) {
  const auto checkpoint = Checkpoint::open("synthetic:tiny-llama");
  const ModelConfig& config = checkpoint->config();
  const StageRange range{0, config.n_layers, true, true};
  const WeightLayout layout = weight_layout(*checkpoint, range);
  ThreadPool threads(2, 0);
  const Cpu cpu{threads, kernels("auto")};
  MemoryBudget budget("host memory", kBudget);
  const auto made = [&faults](int depth, FaultQueue::Faults own) {
    return std::make_unique<FaultQueue>(make_io_queue(depth, faults.io), own);
  };
  const auto offload =
      OffloadFile::open_or_build({testing::TempDir() + "engine-fault", UINT64_MAX}, *checkpoint,
                                 range, layout, budget, threads, [](const std::string&) {});
  std::string failure;
  try {
    WeightStore weights(*checkpoint, range,
                        {place_weights(layout, 0, {.whole_layers = true}), *offload,
                         [&] { return made(8, faults.weights); }, faults.ahead},
                        budget, threads);
    KvDiskOptions disk;
    disk.directory = testing::TempDir();
    disk.make_queue = [&] { return made(8, faults.kv); };
    disk.pages = kSlots * kSteps * kChunk / kPageTokens + kSlots;
    disk.staging_pages = disk.pages;
    disk.ahead = faults.ahead;
    KvStore kv({config.n_kv_heads, config.head_dim, KvFormat::kF16}, range.layers(), 0, kSlots,
               kSlots * kChunk, disk, budget);
    StageEngine engine(config, weights, kv, cpu, budget, kChunk);
    std::vector<float> hidden(static_cast<size_t>(kSlots * kChunk * config.d_model));
    std::vector<float> logits(static_cast<size_t>(kSlots * kChunk * config.vocab_size));
    for (int64_t step = 0; step < kSteps; ++step) {
      std::vector<BatchItem> batch;
      for (int slot = 0; slot < kSlots; ++slot) batch.push_back({slot, step * kChunk, kChunk});
      const std::vector<int32_t> tokens(static_cast<size_t>(kSlots * kChunk), 7);
      engine.embed(batch, tokens, hidden.data());
      engine.sweep(batch, hidden.data());
      test::logits_of(engine, hidden.data(), kSlots * kChunk, logits);
    }
    for (int slot = 0; slot < kSlots; ++slot) engine.release(slot);
  } catch (const IoError& error) {
    failure = error.what();
  }
  EXPECT_EQ(budget.used(), 0u) << "something was not given back";
  return failure;
}

class EngineFault : public testing::TestWithParam<std::tuple<IoMethod, bool>> {
 protected:
  // Lets the transfers that a queue is asked for fail in turn (of late ones only some), until there
  // are no more; about how many there are. `set` puts the faults in their place.
  template <typename Set>
  int fail_each(const char* file, const Set& set) {
    for (int count = 0;; count += 1 + count / 10) {
      Faults faults;
      std::tie(faults.io, faults.ahead) = GetParam();
      // Slow, so that others are under way when the failure comes out.
      set(faults) = {static_cast<uint64_t>(count) + 1, std::chrono::microseconds(200)};
      const std::string failure = run_with(faults);
      if (failure.empty()) return count;
      EXPECT_NE(failure.find(file), std::string::npos) << failure;
      EXPECT_NE(failure.find(" at offset "), std::string::npos) << failure;
    }
  }
};

TEST_P(EngineFault, ReadingWeights) {
  const auto weights = [](Faults& f) -> FaultQueue::Faults& { return f.weights; };
  // At least a piece for each of the layers in each step.
  EXPECT_GE(fail_each(".offload at offset", weights), 2 * kSteps);
}

TEST_P(EngineFault, ReadingAndWritingKvPages) {
  const auto kv = [](Faults& f) -> FaultQueue::Faults& { return f.kv; };
  EXPECT_GE(fail_each("(temporary file) at offset", kv), 3 * kSlots * (kSteps - 1));
}

INSTANTIATE_TEST_SUITE_P(Io, EngineFault,
                         testing::Combine(testing::Values(IoMethod::kAuto, IoMethod::kThreads),
                                          testing::Bool()));

}  // namespace
}  // namespace headrace
