#include "engine/checkpoint/gguf_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "engine/checkpoint/file_checkpoint.h"
#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/tensor_names.h"
#include "engine/error.h"

namespace headrace {
namespace {

const TensorInfo* find_tensor(const GgufHeader& header, std::string_view name) {
  for (const TensorInfo& tensor : header.tensors()) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

// Reads the configuration from the metadata keys, which start with the architecture's name.
class ConfigReader {
 public:
  explicit ConfigReader(const GgufHeader& header) : header_(header) {
    const std::string* architecture = header.string("general.architecture");
    if (architecture == nullptr) fail("general.architecture", "is missing");
    architecture_ = *architecture;
  }

  ModelConfig read() {
    ModelConfig config;
    if (architecture_ == "llama") {
      config.family = Family::kLlama;
    } else if (architecture_ == "qwen2") {
      config.family = Family::kQwen2;
    } else if (architecture_ == "qwen3") {
      config.family = Family::kQwen3;
      config.qk_norm = true;
    } else {
      fail("general.architecture", "\"" + architecture_ + "\" is not supported in GGUF files; " +
                                       "supported are llama, qwen2, qwen3");
    }
    const std::string* name = header_.string("general.name");
    config.name = name != nullptr ? *name : std::filesystem::path(header_.path()).stem().string();
    read_sizes(config);
    read_rope(config);
    read_tensor_facts(config);
    read_tokens(config);
    return config;
  }

 private:
  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw ModelError(header_.path() + ": key \"" + key + "\": " + what);
  }

  std::string key(const char* suffix) const { return architecture_ + "." + suffix; }

  std::optional<int> optional_size(const char* suffix) const {
    const std::optional<int64_t> value = header_.integer(key(suffix));
    if (!value) return std::nullopt;
    if (*value < 1 || *value > std::numeric_limits<int>::max()) {
      fail(key(suffix), std::to_string(*value) + " is not between 1 and 2147483647; the file is " +
                            "damaged, fetch it again");
    }
    return static_cast<int>(*value);
  }

  int size(const char* suffix) const {
    const std::optional<int> value = optional_size(suffix);
    if (!value) fail(key(suffix), "is missing; convert the model again");
    return *value;
  }

  void read_sizes(ModelConfig& config) const {
    config.n_layers = size("block_count");
    config.d_model = size("embedding_length");
    config.d_embed = config.d_model;
    config.n_heads = size("attention.head_count");
    config.n_kv_heads = optional_size("attention.head_count_kv").value_or(config.n_heads);
    config.d_ffn = size("feed_forward_length");
    config.max_positions = size("context_length");
    const std::optional<int> key_length = optional_size("attention.key_length");
    if (!key_length && config.d_model % config.n_heads != 0) {
      fail(key("embedding_length"), std::to_string(config.d_model) +
                                        " is not a multiple of attention.head_count " +
                                        std::to_string(config.n_heads));
    }
    config.head_dim = key_length.value_or(config.d_model / config.n_heads);
    for (const char* same : {"attention.value_length", "rope.dimension_count"}) {
      const int value = optional_size(same).value_or(config.head_dim);
      if (value != config.head_dim) {
        fail(key(same), std::to_string(value) + " differs from the head dimension " +
                            std::to_string(config.head_dim) + ", which is not supported");
      }
    }
    const std::optional<double> eps = header_.real(key("attention.layer_norm_rms_epsilon"));
    if (!eps) fail(key("attention.layer_norm_rms_epsilon"), "is missing; convert the model again");
    config.norm_eps = static_cast<float>(*eps);
    if (header_.integer(key("expert_count")).value_or(0) > 0) {
      fail(key("expert_count"), "mixtures of experts are not supported; use a dense model");
    }
    const std::optional<int64_t> window = header_.integer(key("attention.sliding_window"));
    if (window && *window > 0 && *window < config.max_positions) {
      if (config.family != Family::kLlama) {
        fail(key("attention.sliding_window"),
             "sliding-window attention is not supported; use a model without");
      }
      config.max_positions = static_cast<int>(*window);  // Mistral's, as in hf_config.cpp
    }
  }

  void read_rope(ModelConfig& config) const {
    Rope& rope = config.rope;
    rope.theta = header_.real(key("rope.freq_base")).value_or(10000.0);
    const std::string* type = header_.string(key("rope.scaling.type"));
    std::optional<double> factor = header_.real(key("rope.scaling.factor"));
    if (!factor) factor = header_.real(key("rope.scale_linear"));
    // Files that give a factor without a type mean linear scaling.
    if (type == nullptr ? factor.value_or(1.0) != 1.0 : *type == "linear") {
      if (!factor) fail(key("rope.scaling.factor"), "is missing; convert the model again");
      rope.scaling = Rope::Scaling::kLinear;
      rope.factor = *factor;
    } else if (type != nullptr && *type != "none") {
      fail(key("rope.scaling.type"), "\"" + *type + "\" is not supported; supported are none, " +
                                         "linear, and llama3 through the tensor rope_freqs.weight");
    }
  }

  void read_tensor_facts(ModelConfig& config) const {
    const TensorInfo* embedding = find_tensor(header_, "token_embd.weight");
    if (embedding == nullptr) {
      throw ModelError(header_.path() + ": tensor \"token_embd.weight\" is missing; the file is " +
                       "incomplete, fetch it again");
    }
    if (embedding->rows > std::numeric_limits<int>::max()) {
      throw ModelError(header_.path() + ": tensor \"token_embd.weight\" has " +
                       std::to_string(embedding->rows) + " rows; at most 2147483647 are supported");
    }
    config.vocab_size = static_cast<int>(embedding->rows);
    const auto has = [&](const char* name) { return find_tensor(header_, name) != nullptr; };
    config.tied_head = !has("output.weight");
    config.qkv_bias = config.family == Family::kQwen2 || has("blk.0.attn_q.bias");
    config.o_bias = has("blk.0.attn_output.bias");
    config.mlp_bias = has("blk.0.ffn_down.bias");
  }

  void read_tokens(ModelConfig& config) const {
    for (const char* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
      const std::optional<int> id = token(name, config);
      std::vector<int>& ids = config.eos_token_ids;
      if (id && std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(*id);
    }
    config.bos_token_id = token("tokenizer.ggml.bos_token_id", config);
  }

  std::optional<int> token(const char* name, const ModelConfig& config) const {
    const std::optional<int64_t> id = header_.integer(name);
    if (!id) return std::nullopt;
    if (*id < 0 || *id >= config.vocab_size) {
      fail(name, std::to_string(*id) + " is outside the vocabulary of " +
                     std::to_string(config.vocab_size) + "; the file is damaged, fetch it again");
    }
    return static_cast<int>(*id);
  }

  const GgufHeader& header_;
  std::string architecture_;
};

class GgufCheckpoint : public FileCheckpoint {
 public:
  explicit GgufCheckpoint(const std::string& path) {
    const GgufHeader header(path);
    version_ = header.version();
    config_ = ConfigReader(header).read();
    add_file(path);
    tensors_ = header.tensors();
    if (const TensorInfo* divisors = find_tensor(header, "rope_freqs.weight")) {
      read_frequency_divisors(*divisors);
    }
    finish(path);
  }

  bool qk_rows_interleaved() const override { return config_.family == Family::kLlama; }
  std::string format() const override { return "GGUF v" + std::to_string(version_); }

 protected:
  std::vector<std::string> names(Role role, int layer) const override {
    std::string name = gguf_tensor_name(role, layer);
    if (name.empty()) return {};
    return {std::move(name)};
  }

 private:
  void read_frequency_divisors(const TensorInfo& tensor) {
    if (tensor.dtype != DType::kF32 || tensor.rows != 1 || tensor.cols != config_.head_dim / 2) {
      throw ModelError(files_[0] + ": tensor \"rope_freqs.weight\" must hold " +
                       std::to_string(config_.head_dim / 2) +
                       " elements of type F32; convert the model again");
    }
    std::vector<float>& divisors = config_.rope.frequency_divisors;
    divisors.resize(static_cast<size_t>(tensor.cols));
    read(tensor, 0, std::as_writable_bytes(std::span(divisors)));
  }

  int version_ = 0;
};

}  // namespace

std::unique_ptr<Checkpoint> open_gguf(const std::string& path) {
  return std::make_unique<GgufCheckpoint>(path);
}

}  // namespace headrace
