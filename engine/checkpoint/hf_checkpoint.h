// A model in a Hugging Face directory: config.json and model.safetensors, or the shards that
// model.safetensors.index.json lists.
#pragma once

#include <memory>
#include <string>

#include "engine/checkpoint/checkpoint.h"

namespace headrace {

// Throws ModelError (file, field or tensor, cure) and IoError.
std::unique_ptr<Checkpoint> open_hf_directory(const std::string& directory);

}  // namespace headrace
