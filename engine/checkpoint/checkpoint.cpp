#include "engine/checkpoint/checkpoint.h"

#include <algorithm>
#include <bit>
#include <filesystem>

#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/gguf_checkpoint.h"
#include "engine/checkpoint/hasher.h"
#include "engine/checkpoint/hf_checkpoint.h"
#include "engine/checkpoint/read_file.h"
#include "engine/checkpoint/synthetic.h"
#include "engine/error.h"

namespace headrace {
namespace {

// Everything but the name, which depends on where the directory lies.
void hash_config(Hasher& hash, const ModelConfig& config) {
  hash.text(family_name(config.family));
  for (int value : {config.n_layers,
                    config.d_model,
                    config.d_embed,
                    config.n_heads,
                    config.n_kv_heads,
                    config.head_dim,
                    config.d_ffn,
                    config.vocab_size,
                    config.max_positions,
                    static_cast<int>(config.norm),
                    int{config.post_norm},
                    int{config.has_final_norm},
                    static_cast<int>(config.activation),
                    int{config.gated_mlp},
                    int{config.qkv_bias},
                    int{config.o_bias},
                    int{config.mlp_bias},
                    int{config.norm_bias},
                    int{config.tied_head},
                    int{config.learned_positions},
                    config.position_offset}) {
    hash.integer(static_cast<uint64_t>(value));
  }
  hash.real(double{config.norm_eps});
  const Rope& rope = config.rope;
  hash.integer(static_cast<uint64_t>(rope.scaling));
  hash.integer(static_cast<uint64_t>(rope.original_max_positions));
  for (double value : {rope.theta, rope.factor, rope.low_freq_factor, rope.high_freq_factor}) {
    hash.real(value);
  }
  hash.integer(rope.frequency_divisors.size());
  for (float divisor : rope.frequency_divisors) hash.real(double{divisor});
  hash.integer(config.eos_token_ids.size());
  for (int id : config.eos_token_ids) hash.integer(static_cast<uint64_t>(id));
  hash.integer(static_cast<uint64_t>(int64_t{config.bos_token_id.value_or(-1)}));
}

std::string shape_text(int64_t rows, int64_t cols) {
  return "[" + std::to_string(rows) + " x " + std::to_string(cols) + "]";
}

// How many roles exist once; those of a layer follow them in the enum.
constexpr size_t kOnce = static_cast<size_t>(Role::kAttnNorm);

}  // namespace

std::unique_ptr<Checkpoint> Checkpoint::open(const std::string& model) {
  if (model.starts_with(kSyntheticPrefix)) return open_synthetic(model);
  if (!is_there(model)) {
    throw ModelError(model + ": no such file or directory; give a Hugging Face directory, a GGUF " +
                     "file, or \"synthetic:<shape>\"");
  }
  std::error_code ignored;
  if (std::filesystem::is_directory(model, ignored)) return open_hf_directory(model);
  if (is_gguf(model)) return open_gguf(model);
  const char* cure = model.ends_with(".safetensors")
                         ? "; give the directory that holds it together with config.json"
                         : "; give a Hugging Face directory, a GGUF file, or \"synthetic:<shape>\"";
  throw ModelError(model + ": is not a GGUF file" + cure);
}

size_t Checkpoint::slot(Role role, int layer) const {
  const size_t index = static_cast<size_t>(role);
  if (!is_layer_role(role)) return index;
  const size_t per_layer = all_roles().size() - kOnce;
  return kOnce + static_cast<size_t>(layer) * per_layer + (index - kOnce);
}

const TensorInfo* Checkpoint::find(Role role, int layer) const {
  if (is_layer_role(role) && (layer < 0 || layer >= config_.n_layers)) return nullptr;
  const int position = index_[slot(role, layer)];
  return position < 0 ? nullptr : &tensors_[static_cast<size_t>(position)];
}

std::string Checkpoint::place_of(const TensorInfo& tensor) const {
  const auto file = static_cast<size_t>(tensor.file);
  return (file < files_.size() ? files_[file] : source_) + ": tensor \"" + tensor.name + "\"";
}

void Checkpoint::refuse_not_finite(const TensorInfo& tensor, int64_t row, int64_t column) const {
  throw ModelError(place_of(tensor) + " holds a value that is not finite (row " +
                   std::to_string(row) + ", column " + std::to_string(column) +
                   "); the model is damaged, fetch it again");
}

std::string Checkpoint::tried(Role role, int layer) const {
  std::string list;
  for (const std::string& name : names(role, layer)) list += (list.empty() ? "" : ", ") + name;
  return list;
}

const TensorInfo& Checkpoint::require(Role role, int layer) const {
  const TensorInfo* tensor = find(role, layer);
  if (tensor != nullptr) return *tensor;
  const std::string where =
      is_layer_role(role) ? " of layer " + std::to_string(layer) : std::string();
  throw ModelError(source_ + ": the model has no " + role_name(role) + where +
                   " (names tried: " + tried(role, layer) + ")");
}

int Checkpoint::locate(Role role, int layer,
                       const std::unordered_map<std::string_view, int>& by_name) const {
  const Role stored = role == Role::kHead && config_.tied_head ? Role::kTokenEmbedding : role;
  const std::string where =
      is_layer_role(role) ? " of layer " + std::to_string(layer) : std::string();
  for (const std::string& name : names(stored, layer)) {
    if (const auto reason = unusable_.find(name); reason != unusable_.end()) {
      throw ModelError(reason->second);
    }
    const auto entry = by_name.find(name);
    if (entry == by_name.end()) continue;
    const TensorInfo& tensor = tensors_[static_cast<size_t>(entry->second)];
    const RoleShape shape = role_shape(config_, role);
    if (is_vector_role(role) && !is_plain(tensor.dtype)) {
      throw ModelError(place_of(tensor) + ", the " + role_name(role) + where + ", has type " +
                       dtype_name(tensor.dtype) +
                       "; norms and biases must be F32, F16 or BF16: convert the model again");
    }
    if (tensor.rows != shape.rows || tensor.cols != shape.cols) {
      throw ModelError(place_of(tensor) + " has shape " + shape_text(tensor.rows, tensor.cols) +
                       ", but the " + role_name(role) + where + " must be " +
                       shape_text(shape.rows, shape.cols) +
                       "; configuration and weights do not belong together, fetch the model again");
    }
    return entry->second;
  }
  throw ModelError(source_ + ": the tensor for the " + role_name(role) + where +
                   " is missing (names tried: " + tried(stored, layer) +
                   "); the model is incomplete or of another family, fetch it again");
}

void Checkpoint::finish(const std::string& source) {
  source_ = source;
  validate(config_, source);
  std::unordered_map<std::string_view, int> by_name;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!by_name.emplace(tensors_[i].name, static_cast<int>(i)).second) {
      throw ModelError(source + ": tensor \"" + tensors_[i].name +
                       "\" appears twice; the model is damaged, fetch it again");
    }
  }
  // Grows layer by layer, so that an absurd number of layers ends at the first missing tensor.
  const auto add = [&](Role role, int layer) {
    index_.push_back(has_role(config_, role) ? locate(role, layer, by_name) : -1);
  };
  const std::span<const Role> roles = all_roles();
  for (Role role : roles.first(kOnce)) add(role, 0);
  for (int layer = 0; layer < config_.n_layers; ++layer) {
    for (Role role : roles.subspan(kOnce)) add(role, layer);
  }
}

void Checkpoint::drop_cache(const TensorInfo&, uint64_t, uint64_t) const {}

void Checkpoint::drop_all_cache() const {
  for (const TensorInfo& tensor : tensors_) drop_cache(tensor, 0, tensor.bytes);
}

const std::string& Checkpoint::fingerprint() const {
  std::call_once(fingerprint_once_, [this] { fingerprint_ = compute_fingerprint(); });
  return fingerprint_;
}

std::string Checkpoint::compute_fingerprint() const {
  constexpr uint64_t kSample = 4096;
  Hasher hash;
  hash.text(format());
  hash_config(hash, config_);
  hash.integer(file_bytes_.size());
  for (uint64_t size : file_bytes_) hash.integer(size);
  hash.integer(tensors_.size());
  std::vector<std::byte> sample;
  for (const TensorInfo& tensor : tensors_) {
    hash.text(tensor.name);
    hash.text(dtype_name(tensor.dtype));
    for (int64_t value : {tensor.rows, tensor.cols, int64_t{tensor.file}}) {
      hash.integer(static_cast<uint64_t>(value));
    }
    hash.integer(tensor.offset);
    hash.integer(tensor.bytes);
    sample.resize(std::min(tensor.bytes, kSample));
    read(tensor, (tensor.bytes - sample.size()) / 2, sample);
    hash.bytes(sample);
  }
  return hash.digest();
}

}  // namespace headrace
