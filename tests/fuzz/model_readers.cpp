// Model files: GGUF, and a Hugging Face directory's config.json and safetensors.
#include <algorithm>
#include <filesystem>

#include "engine/checkpoint/checkpoint.h"
#include "engine/error.h"
#include "tests/fuzz/readers.h"
#include "tests/unit/model_files.h"

namespace headrace::fuzz {
namespace {

constexpr uint64_t kMostRead = 64 << 10;

// As a rank does it before and while it loads.
void read_tensors(const Checkpoint& checkpoint) {
  (void)checkpoint.fingerprint();
  std::vector<std::byte> bytes;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    bytes.resize(std::min(tensor.bytes, kMostRead));
    checkpoint.read(tensor, tensor.bytes - bytes.size(), bytes);
  }
  for (const Role role : all_roles()) {
    if (has_role(checkpoint.config(), role)) (void)checkpoint.require(role);
  }
}

bool opens(const std::string& model, const std::string& folder) {
  try {
    read_tensors(*Checkpoint::open(model));
    return true;
  } catch (const ModelError& error) {
    promise_named(error.what(), folder);
    return false;
  }
}

}  // namespace

bool accepts_gguf(const std::string& folder, const std::string& input) {
  const std::string path = folder + "/model.gguf";
  test::write_file(path, input);
  return opens(path, folder);
}

std::vector<std::string> gguf_seeds(const std::string&) {
  return {test::read_file(test::model_path("llama-rope3.Q4_0.gguf")),
          test::read_file(test::model_path("llama-rope3.Q8_0.gguf"))};
}

// config.json, the index of a model in several files (or nothing), and the weights.
bool accepts_safetensors(const std::string& folder, const std::string& input) {
  const std::vector<std::string> parts = parts_of(input, 3);
  const std::string index = folder + "/model.safetensors.index.json";
  const std::string whole = folder + "/model.safetensors";
  const std::string part = folder + "/part.safetensors";
  for (const std::string& file : {index, whole, part}) std::filesystem::remove(file);
  test::write_file(folder + "/config.json", parts[0]);
  const bool in_parts = parts.size() > 1 && !parts[1].empty();
  if (in_parts) test::write_file(index, parts[1]);
  if (parts.size() > 2) test::write_file(in_parts ? part : whole, parts[2]);
  return opens(folder, folder);
}

std::vector<std::string> safetensors_seeds(const std::string&) {
  std::vector<std::string> seeds;
  const std::string gap(1, '\0');
  for (const char* model :
       {"llama-gqa", "llama-linear-bias", "opt-post", "qwen2-tied", "qwen3-tied"}) {
    const std::string path = test::model_path(model);
    seeds.push_back(test::read_file(path + "/config.json") + gap + gap +
                    test::read_file(path + "/model.safetensors"));
  }
  // One of them with an index.
  const std::string path = test::model_path("qwen2-tied");
  std::string map;
  const auto checkpoint = Checkpoint::open(path);
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    map += (map.empty() ? "\"" : ",\"") + tensor.name + "\":\"part.safetensors\"";
  }
  seeds.push_back(test::read_file(path + "/config.json") + gap + "{\"weight_map\":{" + map + "}}" +
                  gap + test::read_file(path + "/model.safetensors"));
  return seeds;
}

}  // namespace headrace::fuzz
