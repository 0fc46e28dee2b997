#include "tests/reference/model.h"

#include <algorithm>
#include <cmath>

#include "engine/ops/rope.h"
#include "tests/reference/canonical.h"
#include "tests/reference/dequantize.h"
#include "tests/reference/int8.h"

namespace headrace::reference {
namespace {

// x [rows][cols] through w [outputs][cols].
std::vector<float> through(const std::vector<float>& x, int64_t cols, const std::vector<float>& w,
                           const std::vector<float>& bias) {
  const auto rows = static_cast<int64_t>(x.size()) / cols;
  const auto outputs = static_cast<int64_t>(w.size()) / cols;
  std::vector<float> y(static_cast<size_t>(rows * outputs));
  linear(x.data(), rows, cols, w.data(), outputs, bias.empty() ? nullptr : bias.data(), y.data());
  return y;
}

void add_to(std::vector<float>& x, const std::vector<float>& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

bool is_rotated(Role role) {
  return role == Role::kQ || role == Role::kK || role == Role::kQBias || role == Role::kKBias;
}

}  // namespace

Model::Model(const Checkpoint& checkpoint, KvFormat kv, bool int8)
    : config_(checkpoint.config()), kv_(kv), int8_(int8) {
  const auto floats = [&](Role role, int layer = 0) {
    return load(checkpoint, role, layer).floats;
  };
  token_embedding_ = floats(Role::kTokenEmbedding);
  position_embedding_ = floats(Role::kPositionEmbedding);
  project_in_ = floats(Role::kProjectIn);
  project_out_ = floats(Role::kProjectOut);
  final_norm_ = floats(Role::kFinalNorm);
  final_norm_bias_ = floats(Role::kFinalNormBias);
  head_ = load(checkpoint, Role::kHead);
  for (int l = 0; l < config_.n_layers; ++l) {
    const auto get = [&](Role role) { return load(checkpoint, role, l); };
    Layer layer;
    layer.attn_norm = floats(Role::kAttnNorm, l);
    layer.attn_norm_bias = floats(Role::kAttnNormBias, l);
    layer.q_norm = floats(Role::kQNorm, l);
    layer.k_norm = floats(Role::kKNorm, l);
    layer.mlp_norm = floats(Role::kMlpNorm, l);
    layer.mlp_norm_bias = floats(Role::kMlpNormBias, l);
    layer.q = get(Role::kQ), layer.q_bias = floats(Role::kQBias, l);
    layer.k = get(Role::kK), layer.k_bias = floats(Role::kKBias, l);
    layer.v = get(Role::kV), layer.v_bias = floats(Role::kVBias, l);
    layer.o = get(Role::kO), layer.o_bias = floats(Role::kOBias, l);
    layer.gate = get(Role::kGate), layer.gate_bias = floats(Role::kGateBias, l);
    layer.up = get(Role::kUp), layer.up_bias = floats(Role::kUpBias, l);
    layer.down = get(Role::kDown), layer.down_bias = floats(Role::kDownBias, l);
    layers_.push_back(std::move(layer));
  }
}

// Empty where the model has no such tensor.
Model::Matrix Model::load(const Checkpoint& checkpoint, Role role, int layer) const {
  const TensorInfo* tensor = checkpoint.find(role, layer);
  if (!tensor) return {};
  Matrix matrix{
      tensor->dtype, tensor->rows, tensor->cols, std::vector<std::byte>(tensor->bytes), {}};
  checkpoint.read(*tensor, 0, matrix.raw);
  if (is_rotated(role) && checkpoint.qk_rows_interleaved()) {
    // The file has the two halves of a head interleaved: its row 2i is row i, its row 2i + 1 is row
    // i + d/2. A bias is a column of one-element rows.
    const bool is_bias = role == Role::kQBias || role == Role::kKBias;
    const size_t stride = row_bytes(tensor->dtype, is_bias ? 1 : tensor->cols);
    const int64_t dim = config_.head_dim;
    const std::vector<std::byte> in_file = matrix.raw;
    for (size_t at = 0; at < in_file.size(); at += stride) {
      const auto row = static_cast<int64_t>(at / stride), i = row % dim;
      const int64_t to = row - i + (i % 2 == 0 ? i / 2 : i / 2 + dim / 2);
      std::copy_n(in_file.begin() + static_cast<int64_t>(at), stride,
                  matrix.raw.begin() + to * static_cast<int64_t>(stride));
    }
  }
  matrix.floats.resize(static_cast<size_t>(tensor->rows * tensor->cols));
  const size_t stride = row_bytes(tensor->dtype, tensor->cols);
  for (int64_t r = 0; r < tensor->rows; ++r) {
    dequantize_row(tensor->dtype, matrix.raw.data() + r * stride, tensor->cols,
                   matrix.floats.data() + r * tensor->cols);
  }
  return matrix;
}

std::vector<float> Model::apply(const std::vector<float>& x, const Matrix& w,
                                const std::vector<float>& bias) const {
  if (!int8_ || dtype_info(w.dtype).block_elements == 1) return through(x, w.cols, w.floats, bias);
  const auto rows = static_cast<int64_t>(x.size()) / w.cols;
  std::vector<float> y(static_cast<size_t>(rows * w.rows));
  int8_linear(x.data(), rows, {w.dtype, w.rows, w.cols, w.raw.data()},
              bias.empty() ? nullptr : bias.data(), y.data());
  return y;
}

std::vector<float> Model::embed(std::span<const int32_t> tokens) const {
  std::vector<float> x;
  for (const int32_t token : tokens) {
    const auto first = token_embedding_.begin() + int64_t{token} * config_.d_embed;
    x.insert(x.end(), first, first + config_.d_embed);
  }
  if (!project_in_.empty()) x = through(x, config_.d_embed, project_in_, {});
  if (!position_embedding_.empty()) {
    for (size_t t = 0; t < tokens.size(); ++t) {
      const size_t row = t + static_cast<size_t>(config_.position_offset);
      for (int d = 0; d < config_.d_model; ++d) {
        x[t * config_.d_model + d] += position_embedding_[row * config_.d_model + d];
      }
    }
  }
  return x;
}

void Model::layers(int first, int end, std::vector<float>& x) const {
  for (int l = first; l < end; ++l) {
    const Layer& layer = layers_[static_cast<size_t>(l)];
    if (config_.post_norm) {
      add_to(x, attention_block(layer, x));
      x = normed(x, layer.attn_norm, layer.attn_norm_bias);
      add_to(x, mlp_block(layer, x));
      x = normed(x, layer.mlp_norm, layer.mlp_norm_bias);
    } else {
      add_to(x, attention_block(layer, normed(x, layer.attn_norm, layer.attn_norm_bias)));
      add_to(x, mlp_block(layer, normed(x, layer.mlp_norm, layer.mlp_norm_bias)));
    }
  }
}

std::vector<float> Model::logits(const std::vector<float>& hidden) const {
  std::vector<float> x = hidden;
  if (!final_norm_.empty()) x = normed(x, final_norm_, final_norm_bias_);
  if (!project_out_.empty()) x = through(x, config_.d_model, project_out_, {});
  return apply(x, head_, {});
}

std::vector<int> Model::greedy(std::vector<int32_t> tokens, int count) const {
  std::vector<int> chosen;
  for (int i = 0; i < count; ++i) {
    std::vector<float> x = embed(tokens);
    layers(0, config_.n_layers, x);
    const std::vector<float> last(x.end() - config_.d_model, x.end());
    chosen.push_back(static_cast<int>(argmax(logits(last))));
    tokens.push_back(chosen.back());
  }
  return chosen;
}

std::vector<float> Model::normed(const std::vector<float>& x, const std::vector<float>& weight,
                                 const std::vector<float>& bias) const {
  const auto width = static_cast<size_t>(config_.d_model);
  std::vector<float> y;
  for (size_t at = 0; at < x.size(); at += width) {
    const std::span row(x.data() + at, width);
    const std::vector<float> out = config_.norm == NormKind::kRms
                                       ? rms_norm(row, weight, config_.norm_eps)
                                       : layer_norm(row, weight, bias, config_.norm_eps);
    y.insert(y.end(), out.begin(), out.end());
  }
  return y;
}

std::vector<float> Model::attention_block(const Layer& layer, const std::vector<float>& x) const {
  std::vector<float> q = apply(x, layer.q, layer.q_bias);
  std::vector<float> k = apply(x, layer.k, layer.k_bias);
  std::vector<float> v = apply(x, layer.v, layer.v_bias);
  if (!layer.q_norm.empty()) q = normed_heads(q, layer.q_norm);
  if (!layer.k_norm.empty()) k = normed_heads(k, layer.k_norm);
  if (!config_.learned_positions) {
    rotate_heads(q, config_.n_heads);
    rotate_heads(k, config_.n_kv_heads);
  }
  for (std::vector<float>* rows : {&k, &v}) {
    for (size_t at = 0; at < rows->size(); at += static_cast<size_t>(config_.head_dim)) {
      store(kv_, std::span(*rows).subspan(at, static_cast<size_t>(config_.head_dim)));
    }
  }

  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  const auto tokens = static_cast<int64_t>(x.size()) / config_.d_model;
  const auto dim = static_cast<size_t>(config_.head_dim);
  std::vector<float> mixed;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int h = 0; h < config_.n_heads; ++h) {
      const int64_t kv_head = h / (config_.n_heads / config_.n_kv_heads);
      const std::span query(q.data() + t * config_.q_rows() + h * config_.head_dim, dim);
      const auto out =
          attention(query, k.data() + kv_head * config_.head_dim,
                    v.data() + kv_head * config_.head_dim, config_.kv_rows(), t, scale);
      mixed.insert(mixed.end(), out.begin(), out.end());
    }
  }
  return apply(mixed, layer.o, layer.o_bias);
}

std::vector<float> Model::normed_heads(const std::vector<float>& x,
                                       const std::vector<float>& weight) const {
  std::vector<float> y;
  for (size_t at = 0; at < x.size(); at += weight.size()) {
    const auto out = rms_norm(std::span(x.data() + at, weight.size()), weight, config_.norm_eps);
    y.insert(y.end(), out.begin(), out.end());
  }
  return y;
}

// x [tokens][heads * head_dim]: row t stands at position t.
void Model::rotate_heads(std::vector<float>& x, int heads) const {
  const std::vector<float> frequencies = rope_frequencies(config_.rope, config_.head_dim);
  const auto dim = static_cast<size_t>(config_.head_dim);
  for (size_t at = 0; at < x.size(); at += dim) {
    const auto position = static_cast<float>(at / dim / static_cast<size_t>(heads));
    std::vector<float> cos, sin;
    for (const float frequency : frequencies) {
      const float angle = position * frequency;
      cos.push_back(static_cast<float>(canonical_cos(angle)));
      sin.push_back(static_cast<float>(canonical_sin(angle)));
    }
    rotate(std::span(x.data() + at, dim), cos, sin);
  }
}

std::vector<float> Model::mlp_block(const Layer& layer, const std::vector<float>& x) const {
  std::vector<float> up = apply(x, layer.up, layer.up_bias);
  if (config_.gated_mlp) {
    const std::vector<float> gate = apply(x, layer.gate, layer.gate_bias);
    for (size_t i = 0; i < up.size(); ++i) up[i] = silu(gate[i]) * up[i];
  } else {
    for (float& value : up) value = relu(value);
  }
  return apply(up, layer.down, layer.down_bias);
}

}  // namespace headrace::reference
