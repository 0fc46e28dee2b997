#include "engine/checkpoint/hf_writer.h"

#include <bit>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/checkpoint/tensor_names.h"
#include "engine/error.h"

namespace headrace {
namespace {

using Json = nlohmann::ordered_json;

// The double that prints as short as the float: 1e-05, not 9.999999747378752e-06.
double shortest(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  double result = 0;
  std::from_chars(text, end, result);
  return result;
}

void add_gated(Json& json, const ModelConfig& c) {
  json["num_key_value_heads"] = c.n_kv_heads;
  json["head_dim"] = c.head_dim;
  json["intermediate_size"] = c.d_ffn;
  json["hidden_act"] = "silu";
  json["rms_norm_eps"] = shortest(c.norm_eps);
  json["rope_theta"] = c.rope.theta;
  json["tie_word_embeddings"] = c.tied_head;
  if (c.family != Family::kLlama) json["use_sliding_window"] = false;
  if (c.family != Family::kQwen2) json["attention_bias"] = c.qkv_bias;
  if (c.family == Family::kLlama) json["mlp_bias"] = c.mlp_bias;
}

void add_opt(Json& json, const ModelConfig& c) {
  json["ffn_dim"] = c.d_ffn;
  json["word_embed_proj_dim"] = c.d_embed;
  json["do_layer_norm_before"] = !c.post_norm;
  json["_remove_final_layer_norm"] = false;
  json["activation_function"] = "relu";
  json["enable_bias"] = true;
  json["layer_norm_elementwise_affine"] = true;
  json["tie_word_embeddings"] = c.tied_head;
  json["pad_token_id"] = 1;
}

struct NamedTensor {
  std::string name;
  const TensorInfo* tensor;
};

std::vector<NamedTensor> tensors_of(const Checkpoint& source) {
  const ModelConfig& config = source.config();
  std::vector<NamedTensor> tensors;
  for (const auto& [role, layer] : stored_roles(config)) {
    const TensorInfo& tensor = source.require(role, layer);
    const std::string reason = no_hf_directory_because(tensor.dtype);
    if (!reason.empty()) throw ModelError(config.name + ": " + reason);
    tensors.push_back({hf_tensor_name(config.family, role, layer), &tensor});
  }
  return tensors;
}

// Consecutive tensors up to `limit` bytes together.
std::vector<std::vector<NamedTensor>> shards_of(std::vector<NamedTensor> tensors, uint64_t limit) {
  std::vector<std::vector<NamedTensor>> shards;
  uint64_t bytes = 0;
  for (NamedTensor& named : tensors) {
    if (shards.empty() || bytes + named.tensor->bytes > limit) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += named.tensor->bytes;
    shards.back().push_back(std::move(named));
  }
  return shards;
}

PlannedFile safetensors_file(std::string name, const std::vector<NamedTensor>& tensors) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  PlannedFile file;
  file.name = std::move(name);
  uint64_t end = 0;
  for (const auto& [tensor_name, tensor] : tensors) {
    Json shape = Json::array();
    if (tensor->rows > 1) shape.push_back(tensor->rows);
    shape.push_back(tensor->cols);
    header[tensor_name] = {{"dtype", dtype_name(tensor->dtype)},
                           {"shape", std::move(shape)},
                           {"data_offsets", {end, end + tensor->bytes}}};
    file.tensors.push_back({tensor, end, 0});
    end += tensor->bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  static_assert(std::endian::native == std::endian::little);
  const auto length = std::bit_cast<std::array<char, 8>>(uint64_t{text.size()});
  file.head = std::string(length.data(), length.size()) + text;
  for (PlannedTensor& planned : file.tensors) planned.offset += file.head.size();
  file.bytes = file.head.size() + end;
  return file;
}

PlannedFile text_file(std::string name, std::string text) {
  const uint64_t bytes = text.size();
  return {std::move(name), std::move(text), {}, bytes};
}

std::string shard_name(size_t index, size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

}  // namespace

std::string hf_config_json(const ModelConfig& c, DType dtype) {
  const char* const architecture = c.family == Family::kLlama   ? "LlamaForCausalLM"
                                   : c.family == Family::kQwen2 ? "Qwen2ForCausalLM"
                                   : c.family == Family::kQwen3 ? "Qwen3ForCausalLM"
                                                                : "OPTForCausalLM";
  Json json;
  json["architectures"] = {architecture};
  json["model_type"] = family_name(c.family);
  json["torch_dtype"] = dtype == DType::kF16    ? "float16"
                        : dtype == DType::kBF16 ? "bfloat16"
                                                : "float32";
  json["vocab_size"] = c.vocab_size;
  json["max_position_embeddings"] = c.max_positions;
  json["hidden_size"] = c.d_model;
  json["num_hidden_layers"] = c.n_layers;
  json["num_attention_heads"] = c.n_heads;
  if (c.family == Family::kOpt) {
    add_opt(json, c);
  } else {
    add_gated(json, c);
  }
  json["bos_token_id"] = c.bos_token_id ? Json(*c.bos_token_id) : Json();
  json["eos_token_id"] =
      c.eos_token_ids.size() == 1 ? Json(c.eos_token_ids.front()) : Json(c.eos_token_ids);
  return json.dump(2) + "\n";
}

std::string no_hf_directory_because(DType dtype) {
  if (dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16) return "";
  return std::string("safetensors has no ") + dtype_name(dtype) +
         "; use f32, f16 or bf16, or a name that ends in .gguf";
}

PlannedModel plan_hf_directory(const Checkpoint& source, uint64_t shard_bytes) {
  const ModelConfig& config = source.config();
  PlannedModel plan{true, {}};
  plan.files.push_back(
      text_file("config.json", hf_config_json(config, source.require(Role::kDown).dtype)));
  const auto shards = shards_of(tensors_of(source), shard_bytes);
  if (shards.size() == 1) {
    plan.files.push_back(safetensors_file("model.safetensors", shards.front()));
    return plan;
  }
  Json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", Json::object()}};
  uint64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    for (const auto& [tensor_name, tensor] : shards[i]) {
      index["weight_map"][tensor_name] = name;
      total += tensor->bytes;
    }
    plan.files.push_back(safetensors_file(name, shards[i]));
  }
  index["metadata"]["total_size"] = total;
  plan.files.push_back(text_file("model.safetensors.index.json", index.dump(2) + "\n"));
  return plan;
}

}  // namespace headrace
