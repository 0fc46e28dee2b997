#include "runtime/plan/memory_plan.h"
#include "runtime/plan/plan_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>

#include "engine/error.h"
#include "engine/memory/offload_file.h"
#include "runtime/plan/stage_plan.h"
#include "tests/unit/model_files.h"

namespace headrace {
namespace {

using test::model_path;

constexpr uint64_t kPlenty = uint64_t{1} << 36;
constexpr Rates kRates = {5e8, 1e-10, 5e-11};  // a disk of 500 MB/s, memory of 10 GB/s

std::unique_ptr<Checkpoint> open(const std::string& model) {
  return Checkpoint::open(model.starts_with("synthetic:") ? model : model_path(model));
}

Stage::Sizes random_sizes(std::mt19937_64& random) {
  Stage::Sizes sizes;
  sizes.slots = 1 + static_cast<int>(random() % 64);
  sizes.step_rows = 1 + static_cast<int64_t>(random() % 600);
  sizes.micro_batch_rows =
      std::min<int64_t>(1 + static_cast<int64_t>(random() % 256), sizes.step_rows);
  sizes.kv_format = static_cast<KvFormat>(random() % 4);
  sizes.int8 = random() % 2 == 0;
  return sizes;
}

Workload workload_of(const Stage::Sizes& sizes, int64_t tokens, bool exact = false) {
  return {sizes.slots, exact, tokens, tokens / 2, tokens, 1};
}

// Takes what a run takes: weights, stage and link buffers, as in runtime/rank.cpp.
void build_stage(const Checkpoint& checkpoint, const StagePlan& plan, MemoryBudget& budget) {
  ThreadPool threads(1, 0);
  const Cpu cpu{threads, kernels("auto")};
  std::unique_ptr<OffloadFile> file;
  std::optional<WeightStore> weights;
  if (plan.placement.all_resident()) {
    weights.emplace(checkpoint, plan.range, budget, threads);
  } else {
    file = OffloadFile::open_or_build({testing::TempDir() + "plans", UINT64_MAX}, checkpoint,
                                      plan.range, weight_layout(checkpoint, plan.range), budget,
                                      threads, [](const std::string&) {});
    weights.emplace(checkpoint, plan.range,
                    WeightOffload{plan.placement, *file, [] { return make_io_queue(8); }, true},
                    budget, threads);
  }
  const KvDiskAccess disk{testing::TempDir(), [] { return make_io_queue(8); }, true};
  const Stage stage(checkpoint.config(), *weights, cpu, budget, plan.sizes, disk);
  std::vector<Buffer> hidden;
  for (int i = 0; i < link_buffers(plan.range); ++i) {
    hidden.push_back(budget.allocate(link_buffer_bytes(checkpoint.config(), plan.host_hidden_rows),
                                     "activations"));
  }
  EXPECT_LE(budget.used(), budget.limit());
}

std::string refusal(const Checkpoint& checkpoint, const WeightLayout& layout,
                    const Stage::Sizes& sizes, const PlanLimits& limits) {
  try {
    plan_stage(checkpoint.config(), layout, sizes, workload_of(sizes, 64), limits, kRates);
  } catch (const DoesNotFit& e) {
    return e.what();
  }
  return "";
}

uint64_t advised(const std::string& text) {
  const size_t at = text.find("--host-memory ");
  return at == text.npos ? 0 : std::stoull(text.substr(at + 14)) << 20;
}

TEST(PlanStage, WhatIsSetAsideComesOffTheBudgetAndIsAskedForInARefusal) {
  const auto checkpoint = open("llama-gqa");
  const WeightLayout layout = weight_layout(*checkpoint, cut_stages(*checkpoint, 1, {}).front());
  Stage::Sizes sizes;
  sizes.slots = 4;
  sizes.step_rows = sizes.micro_batch_rows = 16;
  PlanLimits limits;
  limits.host_memory = 64 << 10;
  const uint64_t least = advised(refusal(*checkpoint, layout, sizes, limits));
  constexpr uint64_t kOther = 5 << 20;
  limits.other = kOther;
  const std::string text = refusal(*checkpoint, layout, sizes, limits);
  EXPECT_NE(text.find("\n  other        5.0 MiB"), std::string::npos) << text;
  EXPECT_EQ(advised(text), least + kOther);
  limits.host_memory = advised(text);
  const StagePlan plan =
      plan_stage(checkpoint->config(), layout, sizes, workload_of(sizes, 64), limits, kRates);
  EXPECT_LE(plan.weights + plan.ring + plan.kv + plan.activations + kOther, limits.host_memory);
  EXPECT_NE(plan_table(plan, kRates).find("other         5.0 MiB"), std::string::npos)
      << plan_table(plan, kRates);
}

TEST(PlanStage, AStageFitsTheBudgetItWasPlannedFor) {
  std::mt19937_64 random(11);
  for (const std::string model : {"llama-gqa", "opt-post", "qwen2-untied", "llama-rope3.Q4_0.gguf",
                                  "synthetic:tiny-opt:q8"}) {
    const auto checkpoint = open(model);
    for (int stages = 1; stages <= checkpoint->config().n_layers; ++stages) {
      for (const StageRange& range : cut_stages(*checkpoint, stages, {})) {
        const WeightLayout layout = weight_layout(*checkpoint, range);
        const Stage::Sizes sizes = random_sizes(random);
        const Workload workload = workload_of(sizes, 1 + static_cast<int64_t>(random() % 100));
        PlanLimits limits;
        limits.host_memory = kPlenty;
        const auto plan_with = [&] {
          return plan_stage(checkpoint->config(), layout, sizes, workload, limits, kRates);
        };
        const StagePlan ample = plan_with();
        EXPECT_EQ(ample.kv_pages(),
                  sizes.slots * KvStore::pages_for(checkpoint->config().max_positions));
        const uint64_t page = ample.kv / static_cast<uint64_t>(ample.kv_pages());
        const uint64_t whole = ample.weights + ample.activations + page;
        for (const bool disk : {false, true}) {
          limits.disk = disk ? UINT64_MAX : 0;
          for (int i = 0; i < 12; ++i) {
            limits.host_memory = whole / 2 + random() % (whole + 20 * page);
            SCOPED_TRACE(model + ", " + std::to_string(limits.host_memory) + " bytes");
            MemoryBudget budget("host memory", limits.host_memory);
            std::optional<StagePlan> plan;
            try {
              plan = plan_with();
            } catch (const DoesNotFit& e) {
              EXPECT_GT(advised(e.what()), limits.host_memory) << e.what();
              continue;
            }
            EXPECT_TRUE(disk || !plan->needs_disk());
            EXPECT_GE(plan->kv_pages(), 1);
            EXPECT_GT(plan->tokens_per_s, 0);
            ASSERT_NO_THROW(build_stage(*checkpoint, *plan, budget)) << describe(*plan);
          }
        }
      }
    }
  }
}

TEST(PlanStage, DoesNotFitSaysWhatIsNeeded) {
  const auto checkpoint = Checkpoint::open("synthetic:smollm2-135m:q8");
  const WeightLayout layout = weight_layout(*checkpoint, {0, 30, true, true});
  PlanLimits limits;
  for (const bool disk : {false, true}) {
    limits.disk = disk ? UINT64_MAX : 0;
    limits.host_memory = disk ? 2 << 20 : 100 << 20;
    const std::string text = refusal(*checkpoint, layout, {}, limits);
    for (const char* part :
         {"layers 0-29, embedding, head", "\n  weights ", "\n  activations ", "\n  KV cache ",
          "\n  needed ", "\n  budget       ", "use more ranks"}) {
      EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << text;
    }
    // What it advises is enough, and the least.
    const uint64_t least = advised(text);
    for (limits.host_memory = least; limits.host_memory < 2 * least;
         limits.host_memory += least / 64) {
      EXPECT_EQ(refusal(*checkpoint, layout, {}, limits), "");
    }
    limits.host_memory = least - (uint64_t{1} << 20);
    EXPECT_NE(refusal(*checkpoint, layout, {}, limits), "");
  }
}

TEST(PlanStage, TooLittleDiskIsSaid) {
  const auto checkpoint = Checkpoint::open("synthetic:smollm2-135m:q8");
  const WeightLayout layout = weight_layout(*checkpoint, {0, 30, true, true});
  PlanLimits limits;
  limits.host_memory = 100 << 20;
  limits.disk = 50 << 20;
  const std::string text = refusal(*checkpoint, layout, {}, limits);
  for (const char* part : {"the disk is too small", "needed, 50.0 MiB there", "--disk-budget"}) {
    EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << text;
  }
}

TEST(PlanStage, TooLittleKvMemoryIsSaid) {
  const auto checkpoint = Checkpoint::open("synthetic:smollm2-135m:q8");
  const WeightLayout layout = weight_layout(*checkpoint, {0, 30, true, true});
  PlanLimits limits;
  limits.host_memory = 100 << 20;  // not enough for all weights
  limits.disk = UINT64_MAX;
  limits.kv_memory = 1 << 20;
  const std::string text = refusal(*checkpoint, layout, {}, limits);
  EXPECT_EQ(advised(text), 0) << text;
  const size_t at = text.find("give --kv-memory ");
  ASSERT_NE(at, std::string::npos) << text;
  limits.kv_memory = std::stoull(text.substr(at + 17)) << 20;
  EXPECT_EQ(refusal(*checkpoint, layout, {}, limits), "");
  limits.kv_memory -= 1 << 20;
  EXPECT_NE(refusal(*checkpoint, layout, {}, limits), "");
}

// A small --kv-memory costs disk traffic and at most sequences in flight, never a request.
TEST(PlanStage, ASmallKvBudgetOnlyCostsDiskTraffic) {
  const auto checkpoint = Checkpoint::open("synthetic:smollm2-135m:q8");
  const WeightLayout layout = weight_layout(*checkpoint, {0, 30, true, true});
  Stage::Sizes sizes;
  sizes.slots = 32;
  PlanLimits limits;
  limits.host_memory = kPlenty;
  limits.disk = UINT64_MAX;
  const uint64_t page =
      io_aligned(Stage::page_shape(checkpoint->config(), sizes.kv_format).page_bytes());
  for (const int64_t longest : {500, 2000, 8000}) {
    const Workload workload{32, true, 400, 200, longest, 1};
    // The pages of a layer of the longest sequence, and in all layers the one that is filled and
    // those that a short step fills.
    const int64_t pages = KvStore::pages_for(longest) + 30 * KvStore::pages_in_use(1, 32);
    const uint64_t least = page * static_cast<uint64_t>(pages) + 8192;
    int slots = 0;
    for (limits.kv_memory = least; slots < 32; limits.kv_memory += limits.kv_memory / 4) {
      ASSERT_LT(limits.kv_memory, 64 * least);
      const StagePlan p = plan_stage(checkpoint->config(), layout, sizes, workload, limits, kRates);
      EXPECT_LE(p.kv, limits.kv_memory) << describe(p);
      EXPECT_GE(p.kv_pages(), KvStore::pages_for(longest));
      EXPECT_GE(p.sizes.kv_staging_pages, KvStore::pages_for(longest));
      EXPECT_GE(p.sizes.slots, slots) << "more memory, fewer sequences";
      EXPECT_GE(p.sizes.step_rows, 32);
      slots = p.sizes.slots;
    }
    limits.kv_memory = least - 4096;
    EXPECT_THROW(plan_stage(checkpoint->config(), layout, sizes, workload, limits, kRates),
                 DoesNotFit);
  }
}

// Also where a resident head fits beside the logits of one row but not of many.
TEST(PlanStage, AShortSequenceStaysInMemoryWhateverTheBudget) {
  const auto checkpoint = Checkpoint::open("synthetic:smollm2-135m:q8");
  const WeightLayout layout = weight_layout(*checkpoint, {0, 30, true, true});
  Stage::Sizes sizes;
  sizes.slots = 1;
  PlanLimits limits;
  limits.disk = UINT64_MAX;
  const uint64_t least = advised(refusal(*checkpoint, layout, sizes, limits));
  ASSERT_GT(least, 0);
  // The very least is for a cache on disk.
  for (uint64_t more = 1 << 20; more < uint64_t{120} << 20; more += 256 << 10) {
    limits.host_memory = least + more;
    const StagePlan plan =
        plan_stage(checkpoint->config(), layout, sizes, workload_of(sizes, 64), limits, kRates);
    EXPECT_EQ(plan.sizes.kv_disk_pages, 0) << more << ": " << describe(plan);
  }
}

TEST(PlanStage, TheLongestSequenceHasRoomWhateverTheMemory) {
  const auto checkpoint = Checkpoint::open("synthetic:smollm2-135m:q8");
  const WeightLayout layout = weight_layout(*checkpoint, {0, 30, true, true});
  const int64_t longest = KvStore::pages_for(6000);
  PlanLimits limits;
  limits.disk = UINT64_MAX;
  for (const bool exact : {false, true}) {
    for (const uint64_t mebibytes : {60, 100, 160, 200, 400}) {
      limits.host_memory = mebibytes << 20;
      const StagePlan plan =
          plan_stage(checkpoint->config(), layout, {}, {4, exact, 40, 20, 6000, 1}, limits, kRates);
      EXPECT_GE(plan.kv_pages(), longest) << mebibytes;
      EXPECT_TRUE(plan.sizes.kv_disk_pages == 0 || plan.sizes.kv_staging_pages >= longest);
    }
  }
}

// Qwen2.5-1.5B in 8 bits does not fit in 900 MiB.
class PlanQwen : public testing::Test {
 protected:
  StagePlan plan(int sequences, int64_t tokens, uint64_t kv_memory = 0,
                 const Rates& rates = kRates) const {
    Stage::Sizes sizes;
    sizes.slots = sequences;
    PlanLimits limits;
    limits.host_memory = uint64_t{900} << 20;
    limits.kv_memory = kv_memory;
    limits.disk = UINT64_MAX;
    return plan_stage(model_->config(), layout_, sizes, workload_of(sizes, tokens, true), limits,
                      rates);
  }

  const std::unique_ptr<Checkpoint> model_ = Checkpoint::open("synthetic:qwen2.5-1.5b:q8");
  const WeightLayout layout_ = weight_layout(*model_, {0, 28, true, true});
};

TEST_F(PlanQwen, StreamsWhatDoesNotFit) {
  const StagePlan one = plan(1, 96);
  EXPECT_TRUE(one.needs_disk());
  EXPECT_EQ(one.sizes.kv_disk_pages, 0);
  // All that does not fit is read, and not much more.
  const uint64_t missing = one.all_weights + one.activations + one.kv - (uint64_t{900} << 20);
  EXPECT_GE(one.streamed, missing);
  EXPECT_LT(one.streamed, missing + one.ring + (uint64_t{16} << 20));
  const double looked_up = lookup_bytes_per_row(layout_, one.placement);
  const double reading = (static_cast<double>(one.streamed) + looked_up) / 5e8;
  EXPECT_GE(one.disk_s, reading);
  EXPECT_LT(one.disk_s, 1.006 * reading) << "a short ring idles no longer than a long one costs";
  const StagePlan quick = plan(1, 96, 0, {5e8, 1e-12, 1e-13});  // nothing idles
  const double bytes =
      static_cast<double>(quick.streamed) + lookup_bytes_per_row(layout_, quick.placement);
  EXPECT_NEAR(quick.disk_s, bytes / 5e8, 1e-9);
  EXPECT_DOUBLE_EQ(one.round_s, std::max(one.compute_s, one.disk_s));
}

TEST_F(PlanQwen, KeepsTheWantedSequences) {
  for (const int sequences : {1, 8, 32, 128}) {
    const StagePlan p = plan(sequences, 96);
    EXPECT_EQ(p.sizes.slots, sequences);
    EXPECT_EQ(p.kv_pages(), sequences * KvStore::pages_for(96));
  }
}

// What is beside resident weights and KV cache is read anew in every step.
TEST_F(PlanQwen, TakesLittleForRingAndActivations) {
  for (const int sequences : {1, 8, 32}) {
    const StagePlan p = plan(sequences, 96, 0, {5e8, 5e-11, 8e-12});  // reading takes longer
    EXPECT_LT(p.ring + p.activations, uint64_t{40} << 20) << describe(p);
    EXPECT_GE(p.sizes.step_rows, sequences);
  }
}

// The slower the disk, the more rows share a pass over what it reads.
TEST(PlanStage, PromptsGoInLargerStepsWhereTheDiskIsSlow) {
  const auto checkpoint = Checkpoint::open("synthetic:qwen2.5-1.5b:q8");
  const WeightLayout layout = weight_layout(*checkpoint, {0, 28, true, true});
  Stage::Sizes sizes;
  sizes.slots = 32;
  PlanLimits limits;
  limits.host_memory = uint64_t{900} << 20;
  limits.disk = UINT64_MAX;
  const auto step_rows = [&](const Workload& workload, double disk) {
    return plan_stage(checkpoint->config(), layout, sizes, workload, limits, {disk, 1e-11, 1e-11})
        .sizes.step_rows;
  };
  const Workload workload = workload_of(sizes, 96, true);
  EXPECT_LT(step_rows(workload, 1e9), sizes.step_rows);
  EXPECT_EQ(step_rows(workload, 5e7), sizes.step_rows);
  Workload whole = workload_of(sizes, 96, true);
  whole.least_step_rows = 8192;
  EXPECT_EQ(step_rows(whole, 1e9), sizes.step_rows);
}

TEST_F(PlanQwen, AKvBudgetSendsPagesToDisk) {
  const StagePlan p = plan(128, 1024, uint64_t{400} << 20);
  EXPECT_EQ(p.kv_pages(), 128 * KvStore::pages_for(1024));
  EXPECT_GT(p.sizes.kv_disk_pages, 0);
  EXPECT_LE(p.kv, uint64_t{400} << 20);
  EXPECT_GE(p.sizes.kv_staging_pages, KvStore::pages_for(1024));
}

}  // namespace
}  // namespace headrace
