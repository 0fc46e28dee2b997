#include "engine/checkpoint/hf_checkpoint.h"

#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "engine/checkpoint/file_checkpoint.h"
#include "engine/checkpoint/hf_config.h"
#include "engine/checkpoint/json.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/checkpoint/tensor_names.h"
#include "engine/error.h"

namespace headrace {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kMaxIndexBytes = 100'000'000;

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
    if (is_there(single.string())) {
      add_tensors(single, nullptr);
    } else if (is_there(index.string())) {
      add_shards(index.string());
    } else {
      fail_without_weights();
    }
    finish(directory);
  }

  std::string format() const override { return "safetensors"; }

 protected:
  std::vector<std::string> names(Role role, int layer) const override {
    // Files of the bare model, without its head, lack the outer prefixes.
    const std::string full = hf_tensor_name(config_.family, role, layer);
    if (full.empty()) return {};
    if (role == Role::kHead) return {full};
    const size_t model = std::string_view("model.").size();
    if (config_.family != Family::kOpt) return {full, full.substr(model)};
    return {full, full.substr(model), full.substr(model + std::string_view("decoder.").size())};
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
      if (!is_there(path.string())) {
        throw ModelError(path.string() +
                         ": is missing, though model.safetensors.index.json names " +
                         "it; fetch the model again, with all its files");
      }
      add_tensors(path, &tensors);
    }
  }

  [[noreturn]] void fail_without_weights() const {
    std::string cure = "fetch the model again, with its *.safetensors files";
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory_, ignored)) {
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
