#include "engine/checkpoint/tensor_names.h"

namespace headrace {
namespace {

// The part of a role's name after "blk.N." or the whole name.
const char* gguf_name(Role role) {
  switch (role) {
    case Role::kTokenEmbedding:
      return "token_embd.weight";
    case Role::kFinalNorm:
      return "output_norm.weight";
    case Role::kHead:
      return "output.weight";
    case Role::kAttnNorm:
      return "attn_norm.weight";
    case Role::kQ:
      return "attn_q.weight";
    case Role::kQBias:
      return "attn_q.bias";
    case Role::kK:
      return "attn_k.weight";
    case Role::kKBias:
      return "attn_k.bias";
    case Role::kQNorm:
      return "attn_q_norm.weight";
    case Role::kKNorm:
      return "attn_k_norm.weight";
    case Role::kV:
      return "attn_v.weight";
    case Role::kVBias:
      return "attn_v.bias";
    case Role::kO:
      return "attn_output.weight";
    case Role::kOBias:
      return "attn_output.bias";
    case Role::kMlpNorm:
      return "ffn_norm.weight";
    case Role::kGate:
      return "ffn_gate.weight";
    case Role::kGateBias:
      return "ffn_gate.bias";
    case Role::kUp:
      return "ffn_up.weight";
    case Role::kUpBias:
      return "ffn_up.bias";
    case Role::kDown:
      return "ffn_down.weight";
    case Role::kDownBias:
      return "ffn_down.bias";
    default:
      return nullptr;  // OPT only
  }
}

// The name of a role in Llama, Mistral and Qwen models, after "layers.N." for those of a layer.
const char* llama_name(Role role) {
  switch (role) {
    case Role::kTokenEmbedding:
      return "embed_tokens.weight";
    case Role::kFinalNorm:
      return "norm.weight";
    case Role::kAttnNorm:
      return "input_layernorm.weight";
    case Role::kQ:
      return "self_attn.q_proj.weight";
    case Role::kQBias:
      return "self_attn.q_proj.bias";
    case Role::kK:
      return "self_attn.k_proj.weight";
    case Role::kKBias:
      return "self_attn.k_proj.bias";
    case Role::kQNorm:
      return "self_attn.q_norm.weight";
    case Role::kKNorm:
      return "self_attn.k_norm.weight";
    case Role::kV:
      return "self_attn.v_proj.weight";
    case Role::kVBias:
      return "self_attn.v_proj.bias";
    case Role::kO:
      return "self_attn.o_proj.weight";
    case Role::kOBias:
      return "self_attn.o_proj.bias";
    case Role::kMlpNorm:
      return "post_attention_layernorm.weight";
    case Role::kGate:
      return "mlp.gate_proj.weight";
    case Role::kGateBias:
      return "mlp.gate_proj.bias";
    case Role::kUp:
      return "mlp.up_proj.weight";
    case Role::kUpBias:
      return "mlp.up_proj.bias";
    case Role::kDown:
      return "mlp.down_proj.weight";
    case Role::kDownBias:
      return "mlp.down_proj.bias";
    default:
      return nullptr;
  }
}

// The same for OPT.
const char* opt_name(Role role) {
  switch (role) {
    case Role::kTokenEmbedding:
      return "embed_tokens.weight";
    case Role::kPositionEmbedding:
      return "embed_positions.weight";
    case Role::kProjectIn:
      return "project_in.weight";
    case Role::kProjectOut:
      return "project_out.weight";
    case Role::kFinalNorm:
    case Role::kMlpNorm:
      return "final_layer_norm.weight";
    case Role::kFinalNormBias:
    case Role::kMlpNormBias:
      return "final_layer_norm.bias";
    case Role::kAttnNorm:
      return "self_attn_layer_norm.weight";
    case Role::kAttnNormBias:
      return "self_attn_layer_norm.bias";
    case Role::kO:
      return "self_attn.out_proj.weight";
    case Role::kOBias:
      return "self_attn.out_proj.bias";
    case Role::kUp:
      return "fc1.weight";
    case Role::kUpBias:
      return "fc1.bias";
    case Role::kDown:
      return "fc2.weight";
    case Role::kDownBias:
      return "fc2.bias";
    case Role::kQ:
    case Role::kQBias:
    case Role::kK:
    case Role::kKBias:
    case Role::kV:
    case Role::kVBias:
      return llama_name(role);
    default:
      return nullptr;
  }
}

}  // namespace

std::string gguf_tensor_name(Role role, int layer) {
  const char* name = gguf_name(role);
  if (name == nullptr) return "";
  return is_layer_role(role) ? "blk." + std::to_string(layer) + "." + name : name;
}

std::string hf_tensor_name(Family family, Role role, int layer) {
  if (role == Role::kHead) return "lm_head.weight";
  const bool opt = family == Family::kOpt;
  const char* name = opt ? opt_name(role) : llama_name(role);
  if (name == nullptr) return "";
  const std::string prefix = opt ? "model.decoder." : "model.";
  return prefix + (is_layer_role(role) ? "layers." + std::to_string(layer) + "." : "") + name;
}

std::vector<StoredRole> stored_roles(const ModelConfig& config) {
  std::vector<StoredRole> roles;
  const auto add = [&](bool of_layers, int layer) {
    for (const Role role : all_roles()) {
      if (is_layer_role(role) != of_layers || !has_role(config, role)) continue;
      if (role == Role::kHead && config.tied_head) continue;
      roles.push_back({role, layer});
    }
  };
  add(false, 0);
  for (int layer = 0; layer < config.n_layers; ++layer) add(true, layer);
  return roles;
}

}  // namespace headrace
