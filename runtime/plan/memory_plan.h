// What of a stage goes where: the memory and disk it takes, and the speed that follows.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "engine/device/device_stage.h"
#include "engine/memory/weight_placement.h"
#include "engine/model/config.h"
#include "runtime/pipeline/stage.h"
#include "runtime/plan/rates.h"

namespace headrace {

// What a run expects of its requests.
struct Workload {
  int sequences = 256;          // in flight over the whole pipeline, at most
  bool exact = false;           // so many are wanted, also if fewer were faster
  int64_t tokens = 1;           // prompt and generated tokens of a usual sequence
  int64_t prompt = 0;           // of them, the prompt's; fewer
  int64_t longest = 0;          // tokens of the longest sequence
  int groups = 1;               // steps under way at once
  bool sampled = false;         // some sequences need their logits, not just the largest
  int64_t least_step_rows = 1;  // a step must not have room for fewer, but for sizes.step_rows
  int64_t chunk = INT64_MAX;    // tokens of a prompt that go in one step, at most
  // On a device, for another stage that serves so many tokens per second: as many as leave this one
  // as fast.
  int64_t wanted_step_rows = 0;
  double enough_per_s = std::numeric_limits<double>::infinity();

  // Of so many sequences in flight.
  int groups_of(int in_flight) const { return groups < in_flight ? groups : in_flight; }
  int group_of(int in_flight) const { return (in_flight - 1) / groups_of(in_flight) + 1; }
};

// KV pages of a layer for so many usual sequences.
int64_t usual_pages(const ModelConfig& config, const Workload& workload, int sequences);
// The same with room for one of the longest beside usual ones: whatever the memory, a request must
// not fail in one placement and be served in another.
int64_t pages_wanted(const ModelConfig& config, const Workload& workload, int sequences);

struct PlanLimits {
  uint64_t host_memory = 0;  // bytes
  uint64_t other = 0;        // of them, for what is neither weights nor KV cache nor activations
  uint64_t kv_memory = 0;    // of them, for KV pages; 0: what is best
  uint64_t disk = 0;         // bytes that may be taken; 0: no disk
  bool overlapped = true;    // computing and reading go on at the same time
};

// Of a stage on a device; bytes of its memory.
struct DevicePlan {
  DeviceStage::Sizes sizes;
  uint64_t weights = 0;   // that stay there
  uint64_t streamed = 0;  // that pass through it in every step
  uint64_t kv = 0;
  uint64_t all = 0;
  uint64_t limit = 0;
};

struct StagePlan {
  StageRange range;
  Stage::Sizes sizes;  // slots and KV pages settled
  WeightPlacement placement;
  // Bytes of host memory; they add up to at most the limit.
  uint64_t weights = 0;  // resident, vectors included
  uint64_t ring = 0;
  uint64_t kv = 0;  // staging included
  uint64_t activations = 0;
  int64_t host_hidden_rows = 0;  // of them, rows in each buffer for hidden states
  uint64_t other = 0;            // tokenizer, requests read ahead, trace
  uint64_t all_weights = 0;      // resident or not
  uint64_t streamed = 0;         // read from disk in every step
  uint64_t disk = 0;             // bytes taken there
  // What is predicted is for sequences of so many tokens, `prompt` of them the prompt's.
  int64_t tokens = 0, prompt = 0;
  // A round: every sequence in flight gets a token. Nothing where rates are not known.
  double compute_s = 0, link_s = 0, disk_s = 0;
  double host_s = 0;  // of compute_s, on the CPU of a stage on a device
  double round_s = 0;
  double tokens_per_s = 0;
  // Tokens generated per second, prompts included.
  double served_per_s = 0;
  std::optional<DevicePlan> device;

  bool has_kv_on_disk() const {
    return sizes.kv_disk_pages > 0 || (device && device->sizes.kv_disk_pages > 0);
  }
  bool needs_disk() const { return !placement.all_resident() || has_kv_on_disk(); }
  int64_t kv_pages() const { return sizes.kv_pages + sizes.kv_disk_pages; }
};

// The best plan: weights and KV cache in memory if they fit, else what gives most tokens per second
// with these rates. `sizes` has slots, rows and format. Throws DoesNotFit with a table of need and
// limit and the least --host-memory that would do.
StagePlan plan_stage(const ModelConfig& config, const WeightLayout& layout,
                     const Stage::Sizes& sizes, const Workload& workload, const PlanLimits& limits,
                     const Rates& rates);

}  // namespace headrace
