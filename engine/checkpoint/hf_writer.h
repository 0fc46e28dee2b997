// The layout of a Hugging Face directory: config.json and model.safetensors, or several shards with
// their index.
// Source: safetensors format description; transformers `configuration_{llama,qwen2,qwen3,opt}.py`
// and the shard names of its `save_pretrained`.
#pragma once

#include <string>

#include "engine/checkpoint/model_writer.h"

namespace headrace {

inline constexpr uint64_t kShardBytes = 5'000'000'000;

// The text of config.json. `dtype` is the format of the matrices.
std::string hf_config_json(const ModelConfig& config, DType dtype);

// Why a model with matrices of this format cannot become a Hugging Face directory, with the cure;
// empty if it can.
std::string no_hf_directory_because(DType dtype);

// `source`, whose Q and K rows are in half-split order, must outlive the plan. No file but one with
// a single tensor holds more than `shard_bytes` of tensors. Throws ModelError where
// no_hf_directory_because says so for a tensor.
PlannedModel plan_hf_directory(const Checkpoint& source, uint64_t shard_bytes = kShardBytes);

}  // namespace headrace
