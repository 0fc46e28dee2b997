// The weights of one stage, packed in panels.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/memory/budget.h"
#include "engine/memory/weight_layout.h"
#include "engine/ops/packed_matrix.h"
#include "engine/thread_pool.h"

namespace headrace {

// A linear layer; `bias` is null where the model has none.
struct Linear {
  PackedMatrix weight;
  const float* bias = nullptr;
};

// `weight` is null where the model has no such norm; `bias` is null for RMS norms.
struct Norm {
  const float* weight = nullptr;  // [d_model]
  const float* bias = nullptr;
};

struct LayerWeights {
  Norm attn_norm;
  Linear q;  // [q_rows][d_model]
  Linear k;  // [kv_rows][d_model]
  Linear v;  // [kv_rows][d_model]
  Linear o;  // [d_model][q_rows]
  Norm mlp_norm;
  Linear gate;  // [d_ffn][d_model], gated MLPs only
  Linear up;    // [d_ffn][d_model]
  Linear down;  // [d_model][d_ffn]
};

struct EmbeddingWeights {
  PackedMatrix tokens;      // [vocab_size][d_embed]
  PackedMatrix positions;   // [max_positions + position_offset][d_model], learned positions only
  PackedMatrix project_in;  // [d_model][d_embed], with projections only
};

struct HeadWeights {
  Norm final_norm;
  PackedMatrix project_out;  // [d_embed][d_model], with projections only
  PackedMatrix head;         // [vocab_size][d_embed]
};

class WeightStore {
 public:
  // Reads and packs the range's tensors, and no others, on all threads. Memory comes from `budget`,
  // which must outlive the store. Throws ModelError, IoError, DoesNotFit.
  WeightStore(const Checkpoint& checkpoint, const StageRange& range, MemoryBudget& budget,
              ThreadPool& threads);

  // Valid for layers of the range (numbered over the whole model).
  const LayerWeights& layer(int layer) const { return layers_[layer - range_.first_layer]; }
  const EmbeddingWeights& embedding() const { return embedding_; }
  const HeadWeights& head() const { return head_; }
  const StageRange& range() const { return range_; }

  // What the constructor will take from the budget.
  static uint64_t bytes_needed(const Checkpoint& checkpoint, const StageRange& range);

 private:
  class Loader;

  StageRange range_;
  std::vector<Buffer> buffers_;
  std::vector<LayerWeights> layers_;
  EmbeddingWeights embedding_;
  HeadWeights head_;
};

}  // namespace headrace
