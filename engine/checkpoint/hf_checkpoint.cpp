#include "engine/checkpoint/hf_checkpoint.h"

#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "engine/checkpoint/file_checkpoint.h"
#include "engine/checkpoint/hf_config.h"
#include "engine/checkpoint/json.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/error.h"

namespace headrace {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kMaxIndexBytes = 100'000'000;

// The name of a role in Llama and Qwen2 models, after "layers.N." for those of a layer.
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

bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

class HfCheckpoint : public FileCheckpoint {
 public:
  explicit HfCheckpoint(const std::string& directory) : directory_(directory) {
    config_ = read_hf_config(directory);
    const fs::path single = directory_ / "model.safetensors";
    const fs::path index = directory_ / "model.safetensors.index.json";
    if (fs::exists(single)) {
      add_tensors(single, nullptr);
    } else if (fs::exists(index)) {
      add_shards(index.string());
    } else {
      fail_without_weights();
    }
    finish(directory);
  }

  std::string format() const override { return "safetensors"; }

 protected:
  std::vector<std::string> names(Role role, int layer) const override {
    if (role == Role::kHead) return {"lm_head.weight"};
    const bool opt = config_.family == Family::kOpt;
    const char* name = opt ? opt_name(role) : llama_name(role);
    if (name == nullptr) return {};
    const std::string inner =
        is_layer_role(role) ? "layers." + std::to_string(layer) + "." + name : std::string(name);
    if (opt) return {"model.decoder." + inner, "decoder." + inner, inner};
    return {"model." + inner, inner};
  }

 private:
  // Adds the tensors of a file: all, or those of `wanted`, which must then all be there.
  void add_tensors(const fs::path& path, const std::set<std::string>* wanted) {
    const int index = add_file(path.string());
    SafetensorsHeader header = read_safetensors_header(file(index));
    size_t found = 0;
    for (TensorInfo& tensor : header.tensors) {
      if (wanted != nullptr && !wanted->contains(tensor.name)) continue;
      ++found;
      tensor.file = index;
      tensors_.push_back(std::move(tensor));
    }
    for (auto& [name, reason] : header.unusable) {
      if (wanted != nullptr && !wanted->contains(name)) continue;
      ++found;
      unusable_[name] = std::move(reason);
    }
    if (wanted != nullptr && found != wanted->size()) fail_missing(path, index, *wanted);
  }

  [[noreturn]] void fail_missing(const fs::path& path, int index,
                                 const std::set<std::string>& wanted) const {
    std::set<std::string> missing = wanted;
    for (const TensorInfo& tensor : tensors_) {
      if (tensor.file == index) missing.erase(tensor.name);
    }
    for (const auto& [name, reason] : unusable_) missing.erase(name);
    throw ModelError(path.string() + ": tensor \"" + *missing.begin() + "\" is missing, though " +
                     "model.safetensors.index.json names this file for it; fetch the model again");
  }

  void add_shards(const std::string& index_path) {
    const json root = parse_json_object(read_text_file(index_path, kMaxIndexBytes), index_path);
    const JsonFields fields(root, index_path);
    const json* map = fields.find("weight_map");
    if (map == nullptr || !map->is_object() || map->empty()) {
      fields.fail("weight_map", "is missing, empty or not an object; fetch the model again");
    }
    std::map<std::string, std::set<std::string>> shards;
    for (const auto& [tensor, value] : map->items()) {
      const std::string shard = value.is_string() ? value.get<std::string>() : std::string();
      if (!is_plain_file_name(shard)) {
        fields.fail(("weight_map." + tensor).c_str(),
                    value.dump().substr(0, 80) + " is not the plain name of a file beside the " +
                        "index; fetch the model again");
      }
      shards[shard].insert(tensor);
    }
    for (const auto& [shard, tensors] : shards) {
      const fs::path path = directory_ / shard;
      if (!fs::exists(path)) {
        throw ModelError(path.string() +
                         ": is missing, though model.safetensors.index.json names " +
                         "it; fetch the model again, with all its files");
      }
      add_tensors(path, &tensors);
    }
  }

  [[noreturn]] void fail_without_weights() const {
    std::string cure = "fetch the model again, with its *.safetensors files";
    for (const fs::directory_entry& entry : fs::directory_iterator(directory_)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".gguf") cure = "give the GGUF file itself: " + entry.path().string();
      if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
        cure = "only pickled weights (" + entry.path().filename().string() +
               ") are there, which are never read because they can run code; convert them with " +
               "transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, " +
               "safe_serialization=True)";
        break;
      }
    }
    throw ModelError(directory_.string() +
                     ": holds neither model.safetensors nor model.safetensors.index.json; " + cure);
  }

  fs::path directory_;
};

}  // namespace

std::unique_ptr<Checkpoint> open_hf_directory(const std::string& directory) {
  return std::make_unique<HfCheckpoint>(directory);
}

}  // namespace headrace
