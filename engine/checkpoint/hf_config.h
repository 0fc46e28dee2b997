// The configuration of a Hugging Face model directory.
// Source of fields and defaults: transformers `configuration_{llama,mistral,qwen2,qwen3,opt}.py`
// and `modeling_rope_utils.py`.
#pragma once

#include <string>

#include "engine/model/config.h"

namespace headrace {

// Reads config.json and, if there, generation_config.json. Throws ModelError (file, field, what is
// supported) and IoError.
ModelConfig read_hf_config(const std::string& directory);

}  // namespace headrace
