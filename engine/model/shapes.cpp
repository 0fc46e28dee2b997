#include "engine/model/shapes.h"

#include "engine/error.h"

namespace headrace {
namespace {

// Llama, Mistral and Qwen models; numbers from the publishers' config.json files.
struct GatedShape {
  const char* name;
  Family family;
  int d_model, n_layers, n_heads, n_kv_heads, d_ffn, vocab_size, max_positions;
  bool tied_head;
  double rope_theta;
  float norm_eps;
  int bos;  // -1: none
  std::vector<int> eos;
  int head_dim = 0;  // 0: d_model / n_heads
};

// OPT models; numbers from metaseq and transformers. d_embed differs from d_model only for 350m,
// which also has its norms after the additions.
struct OptShape {
  const char* name;
  int d_model, n_layers, n_heads, d_ffn, d_embed, vocab_size, max_positions;
  bool post_norm;
};

const std::vector<GatedShape>& gated_shapes() {
  constexpr Family kLlama = Family::kLlama;
  constexpr Family kQwen = Family::kQwen2;
  constexpr Family kQwen3 = Family::kQwen3;
  const std::vector<int> llama3_eos = {128001, 128009};
  const std::vector<int> qwen_eos = {151645, 151643};
  static const std::vector<GatedShape> shapes = {
      {"smollm2-135m", kLlama, 576, 30, 9, 3, 1536, 49152, 8192, true, 1e5, 1e-5f, 1, {2}},
      {"smollm2-360m", kLlama, 960, 32, 15, 5, 2560, 49152, 8192, true, 1e5, 1e-5f, 1, {2}},
      {"smollm2-1.7b", kLlama, 2048, 24, 32, 32, 8192, 49152, 8192, true, 1.3e5, 1e-5f, 1, {2}},
      {"tinyllama-1.1b", kLlama, 2048, 22, 32, 4, 5632, 32000, 2048, false, 1e4, 1e-5f, 1, {2}},
      {"llama-2-7b", kLlama, 4096, 32, 32, 32, 11008, 32000, 4096, false, 1e4, 1e-5f, 1, {2}},
      {"llama-3-8b", kLlama, 4096, 32, 32, 8, 14336, 128256, 8192, false, 5e5, 1e-5f, 128000,
       llama3_eos},
      {"llama-3-70b", kLlama, 8192, 80, 64, 8, 28672, 128256, 8192, false, 5e5, 1e-5f, 128000,
       llama3_eos},
      {"mistral-7b", kLlama, 4096, 32, 32, 8, 14336, 32768, 32768, false, 1e6, 1e-5f, 1, {2}},
      {"qwen2.5-0.5b", kQwen, 896, 24, 14, 2, 4864, 151936, 32768, true, 1e6, 1e-6f, -1, qwen_eos},
      {"qwen2.5-1.5b", kQwen, 1536, 28, 12, 2, 8960, 151936, 32768, true, 1e6, 1e-6f, -1, qwen_eos},
      {"qwen2.5-3b", kQwen, 2048, 36, 16, 2, 11008, 151936, 32768, true, 1e6, 1e-6f, -1, qwen_eos},
      {"qwen2.5-7b", kQwen, 3584, 28, 28, 4, 18944, 152064, 32768, false, 1e6, 1e-6f, -1, qwen_eos},
      {"qwen2.5-14b", kQwen, 5120, 48, 40, 8, 13824, 152064, 32768, false, 1e6, 1e-6f, -1,
       qwen_eos},
      {"qwen2.5-32b", kQwen, 5120, 64, 40, 8, 27648, 152064, 32768, false, 1e6, 1e-6f, -1,
       qwen_eos},
      {"qwen2.5-72b", kQwen, 8192, 80, 64, 8, 29568, 152064, 32768, false, 1e6, 1e-6f, -1,
       qwen_eos},
      {"qwen3-0.6b", kQwen3, 1024, 28, 16, 8, 3072, 151936, 40960, true, 1e6, 1e-6f, -1, qwen_eos,
       128},
      {"qwen3-1.7b", kQwen3, 2048, 28, 16, 8, 6144, 151936, 40960, true, 1e6, 1e-6f, -1, qwen_eos,
       128},
      {"qwen3-4b", kQwen3, 2560, 36, 32, 8, 9728, 151936, 40960, true, 1e6, 1e-6f, -1, qwen_eos,
       128},
      {"qwen3-8b", kQwen3, 4096, 36, 32, 8, 12288, 151936, 40960, false, 1e6, 1e-6f, -1, qwen_eos,
       128},
      {"qwen3-14b", kQwen3, 5120, 40, 40, 8, 17408, 151936, 40960, false, 1e6, 1e-6f, -1, qwen_eos,
       128},
      {"qwen3-32b", kQwen3, 5120, 64, 64, 8, 25600, 151936, 40960, false, 1e6, 1e-6f, -1, qwen_eos,
       128},
      {"tiny-llama", kLlama, 64, 3, 4, 2, 160, 320, 512, false, 1e4, 1e-5f, 1, {2}},
      {"tiny-qwen2", kQwen, 64, 2, 4, 2, 192, 320, 512, true, 1e6, 1e-6f, -1, {2}},
      {"tiny-qwen3", kQwen3, 64, 2, 4, 2, 192, 320, 512, true, 1e6, 1e-6f, -1, {2}, 32},
  };
  return shapes;
}

const std::vector<OptShape>& opt_shapes() {
  static const std::vector<OptShape> shapes = {
      {"opt-125m", 768, 12, 12, 3072, 768, 50272, 2048, false},
      {"opt-350m", 1024, 24, 16, 4096, 512, 50272, 2048, true},
      {"opt-1.3b", 2048, 24, 32, 8192, 2048, 50272, 2048, false},
      {"opt-2.7b", 2560, 32, 32, 10240, 2560, 50272, 2048, false},
      {"opt-6.7b", 4096, 32, 32, 16384, 4096, 50272, 2048, false},
      {"opt-13b", 5120, 40, 40, 20480, 5120, 50272, 2048, false},
      {"opt-30b", 7168, 48, 56, 28672, 7168, 50272, 2048, false},
      {"opt-66b", 9216, 64, 72, 36864, 9216, 50272, 2048, false},
      {"opt-175b", 12288, 96, 96, 49152, 12288, 50272, 2048, false},
      {"tiny-opt", 64, 4, 4, 256, 64, 320, 512, false},
  };
  return shapes;
}

ModelConfig gated_config(const GatedShape& shape) {
  ModelConfig config;
  config.family = shape.family;
  config.name = shape.name;
  config.d_model = config.d_embed = shape.d_model;
  config.n_layers = shape.n_layers;
  config.n_heads = shape.n_heads;
  config.n_kv_heads = shape.n_kv_heads;
  config.head_dim = shape.head_dim > 0 ? shape.head_dim : shape.d_model / shape.n_heads;
  config.d_ffn = shape.d_ffn;
  config.vocab_size = shape.vocab_size;
  config.max_positions = shape.max_positions;
  config.norm_eps = shape.norm_eps;
  config.qkv_bias = shape.family == Family::kQwen2;
  config.qk_norm = shape.family == Family::kQwen3;
  config.tied_head = shape.tied_head;
  config.rope.theta = shape.rope_theta;
  config.eos_token_ids = shape.eos;
  if (shape.bos >= 0) config.bos_token_id = shape.bos;
  return config;
}

ModelConfig opt_config(const OptShape& shape) {
  ModelConfig config;
  config.family = Family::kOpt;
  config.name = shape.name;
  config.d_model = shape.d_model;
  config.d_embed = shape.d_embed;
  config.n_layers = shape.n_layers;
  config.n_heads = config.n_kv_heads = shape.n_heads;
  config.head_dim = shape.d_model / shape.n_heads;
  config.d_ffn = shape.d_ffn;
  config.vocab_size = shape.vocab_size;
  config.max_positions = shape.max_positions;
  config.norm = NormKind::kLayer;
  config.post_norm = shape.post_norm;
  config.has_final_norm = !shape.post_norm;
  config.activation = Activation::kRelu;
  config.gated_mlp = false;
  config.qkv_bias = config.o_bias = config.mlp_bias = config.norm_bias = true;
  config.tied_head = true;
  config.learned_positions = true;
  config.position_offset = 2;
  config.eos_token_ids = {2};
  config.bos_token_id = 2;
  return config;
}

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const OptShape& shape : opt_shapes()) names.emplace_back(shape.name);
  for (const GatedShape& shape : gated_shapes()) names.emplace_back(shape.name);
  return names;
}

ModelConfig named_shape(std::string_view name) {
  for (const GatedShape& shape : gated_shapes()) {
    if (name == shape.name) return gated_config(shape);
  }
  for (const OptShape& shape : opt_shapes()) {
    if (name == shape.name) return opt_config(shape);
  }
  std::string list;
  for (const std::string& known : shape_names()) list += (list.empty() ? "" : ", ") + known;
  throw ModelError("there is no model shape \"" + std::string(name) + "\"; choose one of " + list);
}

}  // namespace headrace
