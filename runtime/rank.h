// One rank of a run, whatever feeds it: its part of the plan, its weights, its stage and its wires.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "comm/device_link.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/memory/budget.h"
#include "engine/memory/weight_store.h"
#include "engine/thread_pool.h"
#include "runtime/device_choice.h"
#include "runtime/hops.h"
#include "runtime/pipeline/pipeline.h"
#include "runtime/pipeline/stage.h"
#include "runtime/plan/agreement.h"
#include "runtime/plan/device_plan.h"
#include "runtime/plan/memory_plan.h"
#include "runtime/plan/other_memory.h"
#include "runtime/plan/plan_text.h"
#include "runtime/plan/stage_plan.h"
#include "runtime/report/stage_report.h"
#include "runtime/requests/request_sizes.h"
#include "runtime/run.h"

namespace headrace {

// All ranks make one, load() it, then rank 0 calls coordinate() and the others follow(). One
// thread. `options` and `wires` must outlive it.
class Rank {
 public:
  // Opens the model, settles with the other ranks what each of them gets, and logs this rank's
  // part. Builds the offload file if the plan needs one and `build` is true; that ends soon after
  // `interrupt`, if it is given, is set. `requests` is rank 0's. Throws UsageError, ModelError,
  // IoError, DoesNotFit, ResourceMissing, PeerLost, Interrupted.
  Rank(const RunOptions& options, const Wires& wires, const RequestSizes& requests = {},
       bool build = true, const std::atomic<bool>* interrupt = nullptr);
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  // Connects the rank with its neighbours, reads the weights and takes the buffers. Throws
  // ModelError, IoError, DoesNotFit, ResourceMissing, PeerLost.
  void load();

  // Rank 0: runs the pipeline until the coordinator is finished or `interrupted` is set (see
  // run_coordinator). The other ranks return from follow() then.
  void coordinate(Coordinator& coordinator, const std::atomic<bool>& interrupted,
                  const std::function<void()>& after_step);
  void follow();
  // All ranks, at the end of a run that went well: takes the links down. Throws PeerLost.
  void finish();

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const StageRange& range() const { return range_; }
  // What the coordinator may put on the pipeline. The order of the requests is up to who feeds it.
  const ScheduleLimits& limits() const { return limits_; }
  int threads() const { return threads_.threads(); }
  // "avx512", "avx512, int8", or "NVIDIA H100 80GB HBM3, f16".
  std::string target() const;
  // What decides the bits of a result besides the model, once all ranks are known.
  std::string numerics() const { return headrace::numerics(options_, math_of_all_); }
  const MemoryBudget& budget() const { return budget_; }
  StageFacts facts() const {
    return {range_.first_layer, range_.end_layer, threads(), target(), describe(plan_)};
  }
  const StagePlan& plan() const { return plan_; }
  const Rates& rates() const { return rates_; }
  // For the report. Nothing that is not known.
  Expected expected() const;

 private:
  Rank(const RunOptions& options, const Wires& wires, const RequestSizes& requests, bool build,
       const std::atomic<bool>* interrupt, int cores);
  OtherMemory other_memory(int64_t logprobs) const;
  void refuse_what_does_not_fit(const Workload& wanted) const;
  void choose_device();
  void find_device_budget();
  void choose_hops();
  HopWires connect();
  ActivationLink& link() { return link_ ? *link_ : wires_.link; }
  Stage::Sizes stage_sizes() const;
  // Of this rank: "f32", "int8", "f16 on NVIDIA H100 80GB HBM3 (cuBLASLt 13.1.0, choice 2)", or the
  // same "with host attention".
  std::string math() const;
  void measure_computing();       // of a stage that is the CPU's
  void measure_host_attention();  // beside a GPU
  double measure_shared_memory();
  PlanLimits plan_limits() const;
  StagePlan make_plan(const Workload& workload, bool build);
  StagePlan make_device_plan(const Workload& workload, bool build);
  void measure_offload_disk(const StagePlan& plan, bool build);
  // `part`: bytes that lie together.
  void measure_kv_disk(const StagePlan& plan, uint64_t part);
  void open_offload_file();
  void load_weights();
  Agreement agree_on_plan();
  void plan_together(const std::function<void()>& plan);
  void plan_for_longer_steps(Workload workload, const Agreement& agreed, bool build);
  void plan_for_fewer(Workload workload, bool build);
  void shorten_steps(int64_t rows);
  void settle(Workload workload, bool build);
  void settle_sharing();
  void say_plan() const;
  bool memory_is_tight() const;

  // Stops the communicator's own thread before what it reads and writes goes: all members above
  // `halt_`.
  struct HaltOnExit {
    Communicator& communicator;
    ~HaltOnExit() { communicator.halt(); }
  };

  const RunOptions& options_;
  const Wires& wires_;
  const std::atomic<bool>* const interrupted_;  // null: nobody interrupts
  const Kernels& kernels_;
  ThreadPool threads_;
  MemoryBudget budget_;
  std::vector<Buffer> hidden_;
  HaltOnExit halt_{wires_.communicator};
  std::unique_ptr<Checkpoint> checkpoint_;
  StageRange range_;
  WeightLayout layout_;
  ChosenDevice device_choice_;
  DeviceLimits device_limits_;
  std::string device_place_;  // the same for ranks that share the GPU
  std::unique_ptr<DeviceWires> device_wires_;
  std::vector<Hop> hops_;
  std::string math_of_all_;
  Rates rates_;
  OtherMemory other_;
  uint64_t disk_room_ = 0;  // bytes that the plan may take
  std::unique_ptr<OffloadFile> offload_;
  StagePlan plan_;
  ScheduleLimits limits_;
  std::optional<WeightStore> weights_;
  std::optional<DeviceStage> device_;
  std::optional<Stage> stage_;
  std::optional<DeviceLink> link_;  // where hidden states come from a GPU or go to one
};

}  // namespace headrace
