// The shape of a model: everything the engine must know about it besides the weights themselves.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace headrace {

enum class Family { kLlama, kQwen2, kOpt, kQwen3 };
enum class NormKind { kRms, kLayer };
enum class Activation { kSilu, kRelu };

// Rotary position embedding, half-split ("rotate half") convention of Hugging Face transformers:
// dimension i of a head is rotated with dimension i + head_dim/2.
struct Rope {
  enum class Scaling { kNone, kLinear, kLlama3 };
  double theta = 10000.0;
  Scaling scaling = Scaling::kNone;
  double factor = 1.0;             // kLinear, kLlama3
  double low_freq_factor = 1.0;    // kLlama3
  double high_freq_factor = 4.0;   // kLlama3
  int original_max_positions = 0;  // kLlama3
  // GGUF stores Llama-3 scaling as one divisor per frequency (rope_freqs.weight), head_dim/2 of
  // them; empty when absent.
  std::vector<float> frequency_divisors;
};

struct ModelConfig {
  Family family = Family::kLlama;
  std::string name;  // for people: directory name, general.name, or synthetic shape

  int n_layers = 0;
  int d_model = 0;  // width of the residual stream
  int d_embed = 0;  // width of the token embedding; differs from d_model only with projections
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int d_ffn = 0;
  int vocab_size = 0;     // rows of the embedding; may exceed what the tokenizer uses
  int max_positions = 0;  // longest sequence (prompt and generated tokens)

  NormKind norm = NormKind::kRms;
  float norm_eps = 1e-5f;
  bool post_norm = false;      // OPT-350m: norms come after the residual additions
  bool has_final_norm = true;  // OPT-350m has none
  Activation activation = Activation::kSilu;
  bool gated_mlp = true;   // down(act(gate(x)) * up(x)), else down(act(up(x)))
  bool qkv_bias = false;   // biases of Q, K and V
  bool qk_norm = false;    // RMS norms of each head of Q and K, before they are rotated
  bool o_bias = false;     // bias of the attention output
  bool mlp_bias = false;   // biases of all matrices of the MLP
  bool norm_bias = false;  // biases of all norms
  bool tied_head = false;  // the head is the token embedding

  bool learned_positions = false;  // OPT: a table is added to the embedding; otherwise RoPE
  int position_offset = 0;         // OPT: row = position + 2
  Rope rope;

  std::vector<int> eos_token_ids;
  std::optional<int> bos_token_id;

  int q_rows() const { return n_heads * head_dim; }
  int kv_rows() const { return n_kv_heads * head_dim; }
  bool has_projections() const { return d_embed != d_model; }
};

// "llama", "qwen2", "qwen3", "opt".
const char* family_name(Family family);
// The families as a list for messages.
std::string supported_families();

// What a tensor is for. The last block exists once per layer.
enum class Role {
  kTokenEmbedding,     // [vocab_size][d_embed]
  kPositionEmbedding,  // [max_positions + position_offset][d_model]
  kProjectIn,          // [d_model][d_embed]
  kProjectOut,         // [d_embed][d_model]
  kFinalNorm,          // [d_model]
  kFinalNormBias,      // [d_model]
  kHead,               // [vocab_size][d_embed]

  kAttnNorm,  // [d_model]
  kAttnNormBias,
  kQ,  // [q_rows][d_model]
  kQBias,
  kK,  // [kv_rows][d_model]
  kKBias,
  kV,  // [kv_rows][d_model]
  kVBias,
  kO,  // [d_model][q_rows]
  kOBias,
  kMlpNorm,  // [d_model]
  kMlpNormBias,
  kGate,  // [d_ffn][d_model]
  kUp,    // [d_ffn][d_model]
  kUpBias,
  kDown,  // [d_model][d_ffn]
  kDownBias,
  kGateBias,  // [d_ffn]; only Llama models with biases in the MLP
  kQNorm,     // [head_dim]
  kKNorm,     // [head_dim]
};

// "token_embedding", "q", "down_bias"...: as the enum spells it.
const char* role_name(Role role);
// True if the role exists once per layer.
bool is_layer_role(Role role);
// True for norms and biases.
bool is_vector_role(Role role);
// All roles, in the order of the enum.
std::span<const Role> all_roles();
// True if a model of this configuration has a tensor of this role. A tied head counts: its tensor
// is the token embedding.
bool has_role(const ModelConfig& config, Role role);

// Row-major; a vector (norm, bias) has one row.
struct RoleShape {
  int64_t rows = 1;
  int64_t cols = 0;
};
RoleShape role_shape(const ModelConfig& config, Role role);

// Throws ModelError if the numbers contradict each other or exceed 2^31; the message starts with
// `source` (a file) and names the field.
void validate(const ModelConfig& config, const std::string& source);

}  // namespace headrace
