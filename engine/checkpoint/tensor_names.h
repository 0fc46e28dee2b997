// What the published formats call the tensor of a role.
#pragma once

#include <string>
#include <vector>

#include "engine/model/config.h"

namespace headrace {

// "blk.3.attn_q.weight"; `layer` is ignored for roles that exist once. Empty where GGUF has no
// name: roles of OPT. Source: gguf-py `constants.py`.
std::string gguf_tensor_name(Role role, int layer);

// "model.layers.3.self_attn.q_proj.weight": the name that transformers' class of the family saves.
// Empty for roles the family does not have. Source: transformers
// `modeling_{llama,qwen2,qwen3,opt}.py`.
std::string hf_tensor_name(Family family, Role role, int layer);

struct StoredRole {
  Role role;
  int layer;  // 0 for roles that exist once
};
// What a file of the model holds: the roles that exist once, then layer by layer; not a tied head.
std::vector<StoredRole> stored_roles(const ModelConfig& config);

}  // namespace headrace
