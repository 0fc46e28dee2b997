// A whole model once more, as plainly as it can be written: every weight in float32 and row-major,
// one sequence at a time, all its tokens at once, keys and values in plain arrays. The canonical
// arithmetic of canonical.h, so hidden states and logits of the program must have the same bits.
//
// Slow, and holds the model in float32: for tiny models.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/ops/cpu/kernels.h"

namespace headrace::reference {

class Model {
 public:
  // `int8`: linear layers in integers where weights have codes, as int8.h has them; not the
  // projections of the embedding.
  Model(const Checkpoint& checkpoint, KvFormat kv, bool int8 = false);

  // The residual stream [tokens][d_model] of a sequence before layer 0.
  std::vector<float> embed(std::span<const int32_t> tokens) const;
  // The same, in place, from before layer `first` to before layer `end`.
  void layers(int first, int end, std::vector<float>& hidden) const;
  // [tokens][vocab_size] from the residual stream after the last layer.
  std::vector<float> logits(const std::vector<float>& hidden) const;

  // The `count` tokens that follow a prompt, each the one with the highest logit.
  std::vector<int> greedy(std::vector<int32_t> tokens, int count) const;

 private:
  struct Matrix {
    DType dtype = DType::kF32;
    int64_t rows = 0, cols = 0;
    std::vector<std::byte> raw;  // as stored
    std::vector<float> floats;
  };
  struct Layer {
    std::vector<float> attn_norm, attn_norm_bias, q_norm, k_norm, mlp_norm, mlp_norm_bias;
    Matrix q, k, v, o, gate, up, down;
    std::vector<float> q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
  };

  Matrix load(const Checkpoint& checkpoint, Role role, int layer = 0) const;
  // Rows x through w.
  std::vector<float> apply(const std::vector<float>& x, const Matrix& w,
                           const std::vector<float>& bias) const;
  std::vector<float> normed(const std::vector<float>& x, const std::vector<float>& weight,
                            const std::vector<float>& bias) const;
  std::vector<float> attention_block(const Layer& layer, const std::vector<float>& x) const;
  std::vector<float> mlp_block(const Layer& layer, const std::vector<float>& x) const;
  std::vector<float> normed_heads(const std::vector<float>& x,
                                  const std::vector<float>& weight) const;
  void rotate_heads(std::vector<float>& x, int heads) const;

  ModelConfig config_;
  KvFormat kv_;
  bool int8_;
  std::vector<float> token_embedding_, position_embedding_, project_in_, project_out_;
  std::vector<float> final_norm_, final_norm_bias_;
  Matrix head_;
  std::vector<Layer> layers_;
};

}  // namespace headrace::reference
