// The engine of one stage: embeds tokens, sweeps its layers over a step's rows, computes logits.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "engine/memory/kv_store.h"
#include "engine/memory/weight_store.h"
#include "engine/model/config.h"
#include "engine/ops/cpu/int8_ops.h"
#include "engine/ops/hidden_passage.h"
#include "engine/ops/host_attention.h"
#include "engine/ops/rope.h"

namespace headrace {

// One thread calls it; it uses all threads of its Cpu.
class StageEngine {
 public:
  // `micro_batch_rows`: rows that go through a layer at once, `logit_rows`: least number of rows
  // whose logits are in memory at once (last stage); they bound the scratch memory and never change
  // a result. `int8`: layers and head are computed in integers where their weights have codes (see
  // ops/int8.h), projections of the embedding are not. The arguments must outlive the engine.
  // Throws DoesNotFit.
  StageEngine(const ModelConfig& config, WeightStore& weights, KvStore& kv, const Cpu& cpu,
              MemoryBudget& budget, int64_t micro_batch_rows, int64_t logit_rows = 1,
              bool int8 = false);
  // The same with layers and head computed by `ops`, out of `weights`, KV pages and `scratch` in
  // their memory (scratch_bytes()). Embeddings, the final norm and projections are the host's, and
  // attention as far as `host_attention` says: with the CPU's bits, whatever those of `ops`. Hidden
  // states of steps that are too long for `passage` pass through it; none are without one.
  StageEngine(const ModelConfig& config, WeightStore& host_weights, WeightSource& weights,
              KvStore& kv, Ops& ops, std::span<float> scratch, const Cpu& cpu, MemoryBudget& budget,
              int64_t micro_batch_rows, const HostAttention& host_attention = {},
              HiddenPassage* passage = nullptr);
  StageEngine(const StageEngine&) = delete;
  StageEngine& operator=(const StageEngine&) = delete;

  // First stage: hidden[rows][d_model] from the rows' tokens, for the sweep that comes next; where
  // the weights' source has the embedding they are not the host's until then.
  void embed(std::span<const BatchItem> batch, std::span<const int32_t> tokens, float* hidden);
  // Where the ops keep the hidden states of the next step; see Ops.
  void work_in(const HiddenPlace& place) { ops_.work_in(place); }
  // hidden[rows][d_model] through all layers of the stage, in place. Reserves the KV pages it
  // fills.
  void sweep(std::span<const BatchItem> batch, float* hidden);
  // The same, but of what comes out only these rows are there afterwards, ascending, at the front.
  void sweep(std::span<const BatchItem> batch, float* hidden, std::span<const int64_t> rows);
  // Last stage: of the hidden states of best.size() + logit_rows rows, which are overwritten, the
  // most likely token of the first ones and the logits of the others: use(first, count, logits) is
  // called for rows [first, first + count) of those, logits [count][vocab_size] in scratch memory.
  // One pass over the head where the logits fit in there.
  using UseLogits = std::function<void(int64_t first, int64_t count, float* logits)>;
  void head(float* hidden, std::span<BestToken> best, int64_t logit_rows, const UseLogits& use);

  void share(int slot, int from, int64_t pages) { kv_.share(slot, from, pages); }
  void release(int slot) { kv_.release(slot); }

  // Rows whose logits are used at once, at most.
  static constexpr int64_t kLogitRows = 64;
  // `block_floats`: of the ops; the CPU's where it is left out.
  static uint64_t scratch_bytes(const ModelConfig& config, const StageRange& range,
                                int64_t micro_batch_rows, int64_t logit_rows,
                                int64_t block_floats = CpuOps::kBlockFloats);
  // What `int8` takes besides.
  static uint64_t int8_bytes(const ModelConfig& config, int64_t micro_batch_rows);

 private:
  // Rows of a step that go through a layer at once.
  struct MicroBatch {
    int64_t first_row = 0;
    int64_t rows = 0;
    std::vector<BatchItem> items;
    std::vector<AttentionSequence> sequences;  // of the items; first_row is of the micro-batch
    // Attention visits the KV cache with a few sequences at a time.
    size_t first_visit = 0;          // of the sweep
    std::vector<size_t> visit_ends;  // one past the last item of each
    int64_t last_visit_pages = 0;    // that come for it, of a layer
    // What the CPU attends to where its pages lie, one row each.
    std::vector<BatchItem> home_items;
    std::vector<AttentionSequence> home_sequences;
  };
  std::vector<MicroBatch> cut(std::span<const BatchItem> batch) const;
  void add_to(MicroBatch& batch, const BatchItem& item) const;
  int64_t pages_for_the_host(std::span<const BatchItem> batch) const;
  void begin_visits(std::vector<MicroBatch>& micro_batches);

  void expect(MicroBatch& batch);
  // `x`: all hidden states; null where they pass.
  void sweep_layers(std::vector<MicroBatch>& micro_batches, float* x);
  bool passes(int64_t rows) const { return passage_ && rows > passage_->rows_at_once(); }
  void run_passing(std::vector<MicroBatch>& micro_batches, float* hidden);
  float* await_passing(const MicroBatch& batch, bool in_first_layer);
  // `layer` counts within the stage.
  void run_layer(const LayerWeights& w, int layer, MicroBatch& batch, float* x);
  // What the blocks make of `in` is added to x.
  void attention_block(const LayerWeights& w, int layer, MicroBatch& batch, const Operand* in,
                       float* x);
  void attend(int layer, MicroBatch& batch);
  void visit(int layer, MicroBatch& batch, float scale);
  void attend_at_home(int layer, MicroBatch& batch, float scale);
  void mlp_block(const LayerWeights& w, int64_t rows, const Operand* in, float* x);
  RowNorm row_norm(const Norm& norm) const;
  RowNorm head_norm(const Norm& norm) const;
  void project(const Linear& w, const Operand* x, int64_t rows, float* y);
  void project_qkv(const LayerWeights& w, const Operand* x, int64_t rows);
  void project_and_add(const Linear& w, const Operand* x, int64_t rows, float* y);
  template <typename Use>
  void for_panels(const Linear& w, Use use);
  void divide_scratch();
  const Operand* past(const Operand* x, int64_t elements) const;
  void before_head(float* hidden, int64_t rows);
  // Returns whose the hidden states are that come out.
  Ops& run_layers(std::span<const BatchItem> batch, float* hidden);
  void head_pass(const Operand* x, int64_t best_rows, int64_t logit_rows, float* logits);
  void best_of_panels(const Panels& panels, const Operand* x, int64_t first_row, int64_t rows);

  const ModelConfig& config_;
  WeightStore& host_weights_;
  WeightSource& weights_;
  KvStore& kv_;
  Cpu cpu_;
  CpuOps host_ops_;
  Buffer own_blocks_;  // of int8_ops_
  std::optional<Int8Ops> int8_ops_;
  Ops& ops_;
  HostAttention host_attention_;
  HiddenPassage* passage_ = nullptr;
  int64_t micro_batch_rows_, block_floats_;
  float* embedded_ = nullptr;  // where ops have the rows that embed() was called for
  // What ops look up for rows that pass, when they are wanted; none where the host has done so.
  std::vector<int32_t> tokens_, places_;
  bool last_use_ = true;  // no other micro-batch of the sweep needs the layer after this one
  std::vector<float> frequencies_;  // [head_dim/2]
  RopeTable rope_;                  // of the step's rows
  // Used by the layers:
  //   block [micro rows][d_model]: what a block reads, then (on the CPU) what it adds to the
  //   residual stream; q, mixed (attention's output) [micro rows][q_rows], k, v [micro
  //   rows][kv_rows] in the same place as ffn [micro rows][d_ffn].
  // By the head: logits of some panels (block_floats_), and whole rows of logits.
  Buffer own_scratch_;
  std::span<float> scratch_;
  Buffer own_host_block_;
  float* host_block_;  // what block_ is to the layers, before and after them
  float *block_, *q_, *k_, *v_, *mixed_, *ffn_;
};

}  // namespace headrace
