#include "engine/model/config.h"

#include <array>
#include <cmath>
#include <limits>

#include "engine/error.h"

namespace headrace {
namespace {

struct RoleEntry {
  Role role;
  const char* name;
};

// In the order of the enum, so that a Role is an index.
constexpr RoleEntry kRoles[] = {
    {Role::kTokenEmbedding, "token_embedding"},
    {Role::kPositionEmbedding, "position_embedding"},
    {Role::kProjectIn, "project_in"},
    {Role::kProjectOut, "project_out"},
    {Role::kFinalNorm, "final_norm"},
    {Role::kFinalNormBias, "final_norm_bias"},
    {Role::kHead, "head"},
    {Role::kAttnNorm, "attn_norm"},
    {Role::kAttnNormBias, "attn_norm_bias"},
    {Role::kQ, "q"},
    {Role::kQBias, "q_bias"},
    {Role::kK, "k"},
    {Role::kKBias, "k_bias"},
    {Role::kV, "v"},
    {Role::kVBias, "v_bias"},
    {Role::kO, "o"},
    {Role::kOBias, "o_bias"},
    {Role::kMlpNorm, "mlp_norm"},
    {Role::kMlpNormBias, "mlp_norm_bias"},
    {Role::kGate, "gate"},
    {Role::kUp, "up"},
    {Role::kUpBias, "up_bias"},
    {Role::kDown, "down"},
    {Role::kDownBias, "down_bias"},
    {Role::kGateBias, "gate_bias"},
    {Role::kQNorm, "q_norm"},
    {Role::kKNorm, "k_norm"},
};
constexpr size_t kRoleCount = std::size(kRoles);

constexpr bool roles_follow_the_enum() {
  for (size_t i = 0; i < kRoleCount; ++i) {
    if (static_cast<size_t>(kRoles[i].role) != i) return false;
  }
  return true;
}
static_assert(roles_follow_the_enum());

constexpr std::array<Role, kRoleCount> make_all_roles() {
  std::array<Role, kRoleCount> all{};
  for (size_t i = 0; i < kRoleCount; ++i) all[i] = kRoles[i].role;
  return all;
}
constexpr std::array<Role, kRoleCount> kAllRoles = make_all_roles();

[[noreturn]] void fail(const std::string& source, const std::string& what) {
  throw ModelError(source + ": " + what + "; the configuration is damaged or not of a supported " +
                   "model");
}

void check_size(const std::string& source, const char* field, int64_t value) {
  if (value < 1 || value > std::numeric_limits<int32_t>::max()) {
    fail(source, std::string(field) + " is " + std::to_string(value) +
                     ", which is not between 1 and 2147483647");
  }
}

void check_token(const std::string& source, const char* field, int id, int vocab_size) {
  if (id < 0 || id >= vocab_size) {
    fail(source, std::string(field) + " " + std::to_string(id) + " is outside the vocabulary of " +
                     std::to_string(vocab_size));
  }
}

void check_rope(const ModelConfig& config, const std::string& source) {
  const Rope& rope = config.rope;
  if (config.head_dim % 2 != 0) {
    fail(source, "head_dim " + std::to_string(config.head_dim) + " is odd, which RoPE cannot use");
  }
  if (!std::isfinite(rope.theta) || rope.theta <= 0) fail(source, "rope_theta is not positive");
  if (rope.scaling != Rope::Scaling::kNone && (!std::isfinite(rope.factor) || rope.factor <= 0)) {
    fail(source, "the RoPE scaling factor is not positive");
  }
  if (rope.scaling == Rope::Scaling::kLlama3) {
    if (!(rope.low_freq_factor > 0) || !(rope.high_freq_factor > rope.low_freq_factor) ||
        !std::isfinite(rope.high_freq_factor)) {
      fail(source, "RoPE scaling needs 0 < low_freq_factor < high_freq_factor");
    }
    check_size(source, "original_max_position_embeddings", rope.original_max_positions);
  }
  if (!rope.frequency_divisors.empty() &&
      rope.frequency_divisors.size() != static_cast<size_t>(config.head_dim / 2)) {
    fail(source, "there are " + std::to_string(rope.frequency_divisors.size()) +
                     " RoPE frequency divisors for head_dim " + std::to_string(config.head_dim));
  }
  for (float divisor : rope.frequency_divisors) {
    if (!std::isfinite(divisor) || divisor <= 0) {
      fail(source, "a RoPE frequency divisor is not positive");
    }
  }
}

}  // namespace

const char* family_name(Family family) {
  switch (family) {
    case Family::kLlama:
      return "llama";
    case Family::kQwen2:
      return "qwen2";
    case Family::kQwen3:
      return "qwen3";
    case Family::kOpt:
      return "opt";
  }
  return "unknown";
}

std::string supported_families() { return "llama, mistral, qwen2, qwen3, opt"; }

const char* role_name(Role role) { return kRoles[static_cast<size_t>(role)].name; }

bool is_layer_role(Role role) { return role >= Role::kAttnNorm; }

bool is_vector_role(Role role) {
  switch (role) {
    case Role::kFinalNorm:
    case Role::kFinalNormBias:
    case Role::kAttnNorm:
    case Role::kAttnNormBias:
    case Role::kQBias:
    case Role::kKBias:
    case Role::kVBias:
    case Role::kOBias:
    case Role::kMlpNorm:
    case Role::kMlpNormBias:
    case Role::kGateBias:
    case Role::kUpBias:
    case Role::kDownBias:
    case Role::kQNorm:
    case Role::kKNorm:
      return true;
    default:
      return false;
  }
}

std::span<const Role> all_roles() { return kAllRoles; }

bool has_role(const ModelConfig& config, Role role) {
  switch (role) {
    case Role::kPositionEmbedding:
      return config.learned_positions;
    case Role::kProjectIn:
    case Role::kProjectOut:
      return config.has_projections();
    case Role::kFinalNorm:
      return config.has_final_norm;
    case Role::kFinalNormBias:
      return config.has_final_norm && config.norm_bias;
    case Role::kAttnNormBias:
    case Role::kMlpNormBias:
      return config.norm_bias;
    case Role::kQBias:
    case Role::kKBias:
    case Role::kVBias:
      return config.qkv_bias;
    case Role::kQNorm:
    case Role::kKNorm:
      return config.qk_norm;
    case Role::kOBias:
      return config.o_bias;
    case Role::kGate:
      return config.gated_mlp;
    case Role::kGateBias:
      return config.gated_mlp && config.mlp_bias;
    case Role::kUpBias:
    case Role::kDownBias:
      return config.mlp_bias;
    default:
      return true;
  }
}

RoleShape role_shape(const ModelConfig& config, Role role) {
  switch (role) {
    case Role::kTokenEmbedding:
    case Role::kHead:
      return {config.vocab_size, config.d_embed};
    case Role::kPositionEmbedding:
      return {int64_t{config.max_positions} + config.position_offset, config.d_model};
    case Role::kProjectIn:
      return {config.d_model, config.d_embed};
    case Role::kProjectOut:
      return {config.d_embed, config.d_model};
    case Role::kQ:
      return {config.q_rows(), config.d_model};
    case Role::kQBias:
      return {1, config.q_rows()};
    case Role::kK:
    case Role::kV:
      return {config.kv_rows(), config.d_model};
    case Role::kKBias:
    case Role::kVBias:
      return {1, config.kv_rows()};
    case Role::kO:
      return {config.d_model, config.q_rows()};
    case Role::kGate:
    case Role::kUp:
      return {config.d_ffn, config.d_model};
    case Role::kQNorm:
    case Role::kKNorm:
      return {1, config.head_dim};
    case Role::kGateBias:
    case Role::kUpBias:
      return {1, config.d_ffn};
    case Role::kDown:
      return {config.d_model, config.d_ffn};
    case Role::kFinalNorm:
    case Role::kFinalNormBias:
    case Role::kAttnNorm:
    case Role::kAttnNormBias:
    case Role::kOBias:
    case Role::kMlpNorm:
    case Role::kMlpNormBias:
    case Role::kDownBias:
      return {1, config.d_model};
  }
  return {};
}

void validate(const ModelConfig& config, const std::string& source) {
  check_size(source, "n_layers", config.n_layers);
  check_size(source, "d_model", config.d_model);
  check_size(source, "d_embed", config.d_embed);
  check_size(source, "n_heads", config.n_heads);
  check_size(source, "n_kv_heads", config.n_kv_heads);
  check_size(source, "head_dim", config.head_dim);
  check_size(source, "d_ffn", config.d_ffn);
  check_size(source, "vocab_size", config.vocab_size);
  check_size(source, "max_positions", config.max_positions);
  check_size(source, "n_heads * head_dim", int64_t{config.n_heads} * config.head_dim);
  check_size(source, "max_positions + position_offset",
             int64_t{config.max_positions} + config.position_offset);
  if (config.n_heads % config.n_kv_heads != 0) {
    fail(source, "n_heads " + std::to_string(config.n_heads) + " is not a multiple of n_kv_heads " +
                     std::to_string(config.n_kv_heads));
  }
  if (config.d_embed > config.d_model) {
    fail(source, "d_embed " + std::to_string(config.d_embed) + " is more than d_model " +
                     std::to_string(config.d_model) + ", which no model of this family has");
  }
  if (!std::isfinite(config.norm_eps) || config.norm_eps < 0) {
    fail(source, "norm_eps is negative or not a number");
  }
  if (!config.learned_positions) check_rope(config, source);
  for (int id : config.eos_token_ids) {
    check_token(source, "eos_token_id", id, config.vocab_size);
  }
  if (config.bos_token_id) {
    check_token(source, "bos_token_id", *config.bos_token_id, config.vocab_size);
  }
}

}  // namespace headrace
