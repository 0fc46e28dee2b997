#include "engine/checkpoint/hf_config.h"

#include <algorithm>
#include <filesystem>

#include "engine/checkpoint/json.h"
#include "engine/checkpoint/read_file.h"
#include "engine/error.h"

namespace headrace {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

json load(const std::filesystem::path& path) {
  return parse_json_object(read_text_file(path.string(), kMaxConfigBytes), path.string());
}

// Fields that every family shares, and those that would change the result if they were ignored.
void read_common(const JsonFields& fields, ModelConfig& config) {
  config.n_layers = fields.required("num_hidden_layers");
  config.d_model = fields.required("hidden_size");
  config.d_embed = config.d_model;
  config.n_heads = fields.required("num_attention_heads");
  config.vocab_size = fields.required("vocab_size");
  config.max_positions = fields.required("max_position_embeddings");
  config.head_dim = fields.integer("head_dim").value_or(0);
  if (config.head_dim == 0) {
    if (config.d_model % config.n_heads != 0) {
      fields.fail("hidden_size", std::to_string(config.d_model) +
                                     " is not a multiple of num_attention_heads " +
                                     std::to_string(config.n_heads));
    }
    config.head_dim = config.d_model / config.n_heads;
  }
  if (fields.find("quantization_config") != nullptr) {
    fields.fail("quantization_config",
                "quantised safetensors are not supported; use the original model or a GGUF file");
  }
}

void read_rope_scaling(const JsonFields& fields, ModelConfig& config) {
  Rope& rope = config.rope;
  std::optional<std::string> type = fields.string("rope_type");
  if (!type) type = fields.string("type");
  const std::string kind = type.value_or("default");
  if (kind == "default") return;
  if (kind != "linear" && kind != "llama3") {
    fields.fail(fields.find("rope_type") != nullptr ? "rope_type" : "type",
                "\"" + kind + "\" is not supported; supported are default, linear, llama3");
  }
  const auto number = [&](const char* key) {
    const std::optional<double> value = fields.real(key);
    if (!value) fields.fail(key, "is missing; fetch the model's original config.json");
    return *value;
  };
  rope.factor = number("factor");
  if (kind == "linear") {
    rope.scaling = Rope::Scaling::kLinear;
    return;
  }
  rope.scaling = Rope::Scaling::kLlama3;
  rope.low_freq_factor = number("low_freq_factor");
  rope.high_freq_factor = number("high_freq_factor");
  rope.original_max_positions =
      fields.integer("original_max_position_embeddings").value_or(config.max_positions);
}

// transformers 5 keeps everything in rope_parameters; earlier versions have rope_theta beside
// rope_scaling.
void read_rope(const JsonFields& fields, ModelConfig& config) {
  config.rope.theta = fields.real("rope_theta").value_or(10000.0);
  auto scaling = fields.object("rope_parameters");
  if (!scaling) scaling = fields.object("rope_scaling");
  double rotary_part = fields.real("partial_rotary_factor").value_or(1.0);
  if (scaling) {
    config.rope.theta = scaling->real("rope_theta").value_or(config.rope.theta);
    rotary_part = scaling->real("partial_rotary_factor").value_or(rotary_part);
    read_rope_scaling(*scaling, config);
  }
  if (rotary_part != 1.0) {
    fields.fail("partial_rotary_factor", "rotating a part of the head is not supported");
  }
}

void read_gated(const JsonFields& fields, ModelConfig& config) {
  config.n_kv_heads = fields.integer("num_key_value_heads").value_or(config.n_heads);
  config.d_ffn = fields.required("intermediate_size");
  config.norm_eps = static_cast<float>(fields.real("rms_norm_eps").value_or(1e-6));
  config.tied_head = fields.boolean("tie_word_embeddings").value_or(false);
  const std::string activation = fields.string("hidden_act").value_or("silu");
  if (activation != "silu") {
    fields.fail("hidden_act", "\"" + activation + "\" is not supported; supported is silu");
  }
  read_rope(fields, config);
}

void read_llama(const JsonFields& fields, ModelConfig& config) {
  config.family = Family::kLlama;
  read_gated(fields, config);
  config.qkv_bias = fields.boolean("attention_bias").value_or(false);
  config.o_bias = config.qkv_bias;
  config.mlp_bias = fields.boolean("mlp_bias").value_or(false);
}

// A Llama model but for the window, within which its attention is the same.
void read_mistral(const JsonFields& fields, ModelConfig& config) {
  config.family = Family::kLlama;
  read_gated(fields, config);
  constexpr int kWindow = 4096;  // where config.json does not mention it
  const std::optional<int> window = fields.integer("sliding_window");
  if (window || !fields.has("sliding_window")) {
    config.max_positions = std::min(config.max_positions, window.value_or(kWindow));
  }
}

void refuse_sliding_window(const JsonFields& fields) {
  bool sliding = fields.boolean("use_sliding_window").value_or(false);
  if (const json* types = fields.find("layer_types")) {
    sliding = sliding || !types->is_array() ||
              !std::all_of(types->begin(), types->end(),
                           [](const json& type) { return type == "full_attention"; });
  }
  if (sliding) {
    fields.fail("use_sliding_window",
                "sliding-window attention is not supported; use a model with full attention");
  }
}

void read_qwen2(const JsonFields& fields, ModelConfig& config) {
  config.family = Family::kQwen2;
  read_gated(fields, config);
  config.qkv_bias = true;
  refuse_sliding_window(fields);
}

void read_qwen3(const JsonFields& fields, ModelConfig& config) {
  config.family = Family::kQwen3;
  read_gated(fields, config);
  config.qkv_bias = config.o_bias = fields.boolean("attention_bias").value_or(false);
  config.qk_norm = true;
  refuse_sliding_window(fields);
}

void read_opt(const JsonFields& fields, ModelConfig& config) {
  config.family = Family::kOpt;
  config.n_kv_heads = config.n_heads;
  config.d_ffn = fields.required("ffn_dim");
  config.d_embed = fields.integer("word_embed_proj_dim").value_or(config.d_model);
  config.norm = NormKind::kLayer;
  config.norm_eps = 1e-5f;  // not in the file: the default of torch's LayerNorm
  config.post_norm = !fields.boolean("do_layer_norm_before").value_or(true);
  config.has_final_norm =
      !config.post_norm && !fields.boolean("_remove_final_layer_norm").value_or(false);
  config.gated_mlp = false;
  config.activation = Activation::kRelu;
  const std::string activation = fields.string("activation_function").value_or("relu");
  if (activation != "relu") {
    fields.fail("activation_function",
                "\"" + activation + "\" is not supported; supported is relu");
  }
  for (const char* key : {"enable_bias", "layer_norm_elementwise_affine"}) {
    if (!fields.boolean(key).value_or(true)) {
      fields.fail(key, "false is not supported; supported is true");
    }
  }
  config.qkv_bias = config.o_bias = config.mlp_bias = config.norm_bias = true;
  config.learned_positions = true;
  config.position_offset = 2;
  config.tied_head = fields.boolean("tie_word_embeddings").value_or(true);
}

struct Reader {
  std::string_view model_type;
  void (*read)(const JsonFields&, ModelConfig&);
};
constexpr Reader kReaders[] = {{"llama", read_llama},
                               {"mistral", read_mistral},
                               {"qwen2", read_qwen2},
                               {"qwen3", read_qwen3},
                               {"opt", read_opt}};

// One token id or a list of them; empty if the field is absent or null.
std::vector<int> token_ids(const JsonFields& fields, const char* key) {
  const json* value = fields.find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {*fields.integer(key, 0)};
  std::vector<int> ids;
  for (const json& item : *value) {
    const json wrapped = {{key, item}};
    const std::optional<int> id = JsonFields(wrapped, fields.source()).integer(key, 0);
    if (!id) fields.fail(key, "holds null instead of a token id");
    ids.push_back(*id);
  }
  return ids;
}

// transformers' default ids apply where config.json does not mention the field at all.
void read_tokens(const std::filesystem::path& directory, const json& root, const JsonFields& fields,
                 ModelConfig& config) {
  std::vector<int> eos = token_ids(fields, "eos_token_id");
  std::vector<int> bos = token_ids(fields, "bos_token_id");
  if (config.family == Family::kLlama || config.family == Family::kOpt) {
    if (!root.contains("eos_token_id")) eos = {2};
    if (!root.contains("bos_token_id")) bos = {config.family == Family::kOpt ? 2 : 1};
  }
  const std::filesystem::path path = directory / "generation_config.json";
  if (is_there(path.string())) {
    const json generation_root = load(path);
    const JsonFields generation(generation_root, path.string());
    const std::vector<int> generation_eos = token_ids(generation, "eos_token_id");
    if (!generation_eos.empty()) eos = generation_eos;
  }
  config.eos_token_ids = eos;
  if (!bos.empty()) config.bos_token_id = bos.front();
}

std::string directory_name(const std::filesystem::path& directory) {
  std::error_code error;
  const std::filesystem::path full = std::filesystem::weakly_canonical(directory, error);
  const std::string name = (error ? directory : full).filename().string();
  return name.empty() ? directory.string() : name;
}

}  // namespace

ModelConfig read_hf_config(const std::string& directory) {
  const std::filesystem::path path = std::filesystem::path(directory) / "config.json";
  if (!is_there(path.string())) {
    throw ModelError(path.string() + ": is missing; give a directory as Hugging Face lays it out " +
                     "(config.json, tokenizer.json, *.safetensors) or a GGUF file");
  }
  const json root = load(path);
  const JsonFields fields(root, path.string());
  const std::string type = fields.string("model_type").value_or("");
  ModelConfig config;
  config.name = directory_name(directory);
  const auto reader = std::find_if(std::begin(kReaders), std::end(kReaders),
                                   [&](const Reader& r) { return r.model_type == type; });
  if (reader == std::end(kReaders)) {
    fields.fail("model_type",
                "\"" + type + "\" is not supported; supported are " + supported_families());
  }
  read_common(fields, config);
  reader->read(fields, config);
  read_tokens(directory, root, fields, config);
  validate(config, path.string());
  return config;
}

}  // namespace headrace
