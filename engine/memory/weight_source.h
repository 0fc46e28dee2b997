// The weights as the engine goes through them: a layer at a time, in panels as they come.
#pragma once

#include <cstdint>

#include "engine/ops/packed_matrix.h"

namespace headrace {

// A linear layer; `bias` is null where the model has none. Panels [0, streamed) are not in
// weight.panels but come from disk, see WeightSource::await().
struct Linear {
  PackedMatrix weight;
  const float* bias = nullptr;
  int64_t streamed = 0;
  uint64_t offset = 0;  // in the unit's image
};

// Panels [first, end) of a matrix are there.
struct Panels {
  PackedMatrix weight;
  int64_t first = 0;
  int64_t end = 0;
};

// `weight` is null where the model has no such norm; `bias` is null for RMS norms.
struct Norm {
  const float* weight = nullptr;  // [d_model], or of a head's Q or K [head_dim]
  const float* bias = nullptr;
};

struct LayerWeights {
  Norm attn_norm;
  Linear q;  // [q_rows][d_model]
  Linear k;  // [kv_rows][d_model]
  Linear v;  // [kv_rows][d_model]
  Norm q_norm;
  Norm k_norm;
  Linear o;  // [d_model][q_rows]
  Norm mlp_norm;
  Linear gate;  // [d_ffn][d_model], gated MLPs only
  Linear up;    // [d_ffn][d_model]
  Linear down;  // [d_model][d_ffn]
};

// In the order of use.
inline constexpr Linear LayerWeights::*kLayerMatrices[] = {
    &LayerWeights::q,    &LayerWeights::k,  &LayerWeights::v,   &LayerWeights::o,
    &LayerWeights::gate, &LayerWeights::up, &LayerWeights::down};

// One thread uses it.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // A layer of the range (numbered over the whole model), then the head, are acquired in order, one
  // at a time, and released; the head may be left out.
  virtual const LayerWeights& acquire_layer(int layer) = 0;
  virtual void release_layer(int layer) = 0;
  virtual const Linear& acquire_head() = 0;
  virtual void release_head() = 0;

  // Layers are used with so many rows of hidden states from now on.
  virtual void expect_rows(int64_t) {}
  // Where they are for what is computed next; null: nowhere.
  virtual const EmbeddingTables* embedding() { return nullptr; }
  // All layers are in their place for good.
  virtual bool is_fixed() const { return false; }
  // A sweep is over, and all of it queued: the next one may begin to come.
  virtual void prefetch() {}

  // Waits until panel `first` of a matrix of what is acquired is there for what is computed next,
  // and returns it with those after it that are there, too. In order: first panels before later
  // ones, and matrices as numbered in LayerWeights. Throws IoError, ResourceMissing.
  virtual Panels await(const Linear& linear, int64_t first) = 0;
  // Neither panels before `end` of this matrix nor the matrices before it are used again before the
  // release. If that is not said of everything, there must be room for a whole layer.
  virtual void done_with(const Linear& linear, int64_t end) = 0;
};

}  // namespace headrace
