// Plans of a stage on a device, made and then taken at their word.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/memory/offload_file.h"
#include "runtime/plan/device_plan.h"
#include "runtime/plan/plan_text.h"
#include "runtime/plan/stage_plan.h"
#include "tests/device/fake_device.h"

namespace headrace::test {

inline constexpr uint64_t kMiB = 1 << 20;
inline constexpr uint64_t kPlenty = uint64_t{1} << 36;
inline constexpr uint64_t kLibraries = 640 * kMiB;  // what a plan leaves for cuBLASLt

inline Rates rates() {
  Rates rates;
  rates.disk = 1e9;
  rates.link = 5e10;
  rates.device_memory = 3e12;
  return rates;
}

class DevicePlanTest : public testing::Test {
 protected:
  void open(const std::string& model) {
    checkpoint_ = Checkpoint::open(model);
    range_ = {0, checkpoint_->config().n_layers, true, true};
    layout_ = weight_layout(*checkpoint_, range_);
    sizes_.slots = 16;
    sizes_.step_rows = 1024;
    sizes_.micro_batch_rows = 256;
    workload_ = {16, true, 64, 32, 64, 1};
    limits_.host_memory = kPlenty;
  }

  StagePlan plan(uint64_t device_memory) const {
    return plan_device_stage(
        checkpoint_->config(), layout_, sizes_, workload_, limits_,
        {device_memory, weights_, kv_, half_, wires_, least_share_, most_share_}, rates_);
  }

  std::string refusal(uint64_t device_memory) const {
    try {
      plan(device_memory);
    } catch (const DoesNotFit& e) {
      return e.what();
    }
    return "";
  }

  // Takes what a run takes; neither budget is exceeded.
  void build(const StagePlan& plan) {
    ThreadPool threads(2, 0);
    const Cpu cpu{threads, kernels("auto")};
    MemoryBudget budget("host memory", limits_.host_memory);
    std::unique_ptr<OffloadFile> file;
    std::optional<WeightStore> weights;
    if (plan.placement.all_resident()) {
      weights.emplace(*checkpoint_, range_, budget, threads, false, plan.placement.ends);
    } else {
      file = OffloadFile::open_or_build({testing::TempDir() + "device_plans", UINT64_MAX},
                                        *checkpoint_, range_, layout_, budget, threads,
                                        [](const std::string&) {});
      weights.emplace(*checkpoint_, range_,
                      WeightOffload{plan.placement, *file, [] { return make_io_queue(8); }, true},
                      budget, threads);
    }
    auto owner = std::make_unique<FakeDevice>(1);
    const FakeDevice& device = *owner;
    DeviceStage on_device(std::move(owner), *checkpoint_, *weights, threads, budget,
                          plan.device->sizes,
                          {testing::TempDir(), [] { return make_io_queue(8); }});
    Stage stage(checkpoint_->config(), *weights, on_device, cpu, budget, plan.sizes);
    std::vector<Buffer> hidden;
    for (int i = 0; i < link_buffers(range_); ++i) {
      hidden.push_back(budget.allocate(
          link_buffer_bytes(checkpoint_->config(), plan.host_hidden_rows), "activations"));
    }
    // The libraries' share is also for weights on their way while the stage is loaded.
    EXPECT_LE(device.allocated(), plan.device->all);
    EXPECT_LE(plan.device->all, plan.device->limit);
    EXPECT_LE(budget.used(), budget.limit());
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  StageRange range_;
  WeightLayout layout_;
  Stage::Sizes sizes_;
  Workload workload_;
  PlanLimits limits_;
  uint64_t weights_ = UINT64_MAX, kv_ = UINT64_MAX;
  bool half_ = true;
  int wires_ = 0;
  double least_share_ = 0, most_share_ = 0;
  Rates rates_ = rates();
};

}  // namespace headrace::test
