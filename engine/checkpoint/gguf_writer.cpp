#include "engine/checkpoint/gguf_writer.h"

#include <bit>
#include <cstring>

#include "engine/checkpoint/tensor_names.h"
#include "engine/error.h"

namespace headrace {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF numbers are little-endian");

constexpr uint64_t kAlignment = 32;  // of tensor data, where general.alignment does not say

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The bytes of a header as they grow.
class Bytes {
 public:
  template <typename T>
  void number(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    text_.append(raw, sizeof(T));
  }
  void string(const std::string& value) {
    number<uint64_t>(value.size());
    text_ += value;
  }
  void append(const Bytes& other) { text_ += other.text_; }
  void pad(size_t size) { text_.resize(size, '\0'); }
  const std::string& text() const { return text_; }
  size_t size() const { return text_.size(); }

 private:
  std::string text_;
};

// Key and value pairs, with the type numbers of docs/gguf.md.
class Metadata {
 public:
  void integer(const std::string& key, int64_t value) {
    add(key, 4);
    bytes_.number(static_cast<uint32_t>(value));
  }
  void real(const std::string& key, double value) {
    add(key, 6);
    bytes_.number(static_cast<float>(value));
  }
  void string(const std::string& key, const std::string& value) {
    add(key, 8);
    bytes_.string(value);
  }
  uint64_t count() const { return count_; }
  const Bytes& bytes() const { return bytes_; }

 private:
  void add(const std::string& key, uint32_t type) {
    ++count_;
    bytes_.string(key);
    bytes_.number(type);
  }

  uint64_t count_ = 0;
  Bytes bytes_;
};

// The number of general.file_type for files whose matrices have mostly this format (llama.h,
// enum llama_ftype); for people, nothing depends on it.
int file_type(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ8_0:
      return 7;
    case DType::kBF16:
      return 32;
    default:
      return 0;
  }
}

Metadata metadata_of(const Checkpoint& source) {
  const ModelConfig& c = source.config();
  const std::string arch = family_name(c.family);
  Metadata m;
  m.string("general.architecture", arch);
  m.string("general.type", "model");
  m.string("general.name", c.name);
  m.integer("general.file_type", file_type(source.require(Role::kDown).dtype));
  m.integer("general.quantization_version", 2);
  m.integer(arch + ".block_count", c.n_layers);
  m.integer(arch + ".context_length", c.max_positions);
  m.integer(arch + ".embedding_length", c.d_model);
  m.integer(arch + ".feed_forward_length", c.d_ffn);
  m.integer(arch + ".attention.head_count", c.n_heads);
  m.integer(arch + ".attention.head_count_kv", c.n_kv_heads);
  m.integer(arch + ".attention.key_length", c.head_dim);
  m.integer(arch + ".attention.value_length", c.head_dim);
  m.real(arch + ".attention.layer_norm_rms_epsilon", c.norm_eps);
  m.integer(arch + ".rope.dimension_count", c.head_dim);
  m.real(arch + ".rope.freq_base", c.rope.theta);
  m.integer(arch + ".vocab_size", c.vocab_size);
  m.string("tokenizer.ggml.model", "none");
  if (c.bos_token_id) m.integer("tokenizer.ggml.bos_token_id", *c.bos_token_id);
  const char* ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"};
  for (size_t i = 0; i < std::min(std::size(ends), c.eos_token_ids.size()); ++i) {
    m.integer(ends[i], c.eos_token_ids[i]);
  }
  return m;
}

// The tensors in layer order, with offsets from the start of the tensor data.
struct NamedTensor {
  std::string name;
  PlannedTensor planned;
};

std::vector<NamedTensor> tensors_of(const Checkpoint& source, uint64_t& end) {
  const ModelConfig& config = source.config();
  std::vector<NamedTensor> tensors;
  for (const auto& [role, layer] : stored_roles(config)) {
    const bool rotated =
        role == Role::kQ || role == Role::kK || role == Role::kQBias || role == Role::kKBias;
    const int head = rotated && config.family == Family::kLlama ? config.head_dim : 0;
    const TensorInfo& tensor = source.require(role, layer);
    tensors.push_back({gguf_tensor_name(role, layer), {&tensor, end, head}});
    end = aligned(end + tensor.bytes);
  }
  return tensors;
}

Bytes header_of(const Metadata& metadata, const std::vector<NamedTensor>& tensors) {
  Bytes head;
  for (const char c : {'G', 'G', 'U', 'F'}) head.number(c);
  head.number<uint32_t>(3);
  head.number<uint64_t>(tensors.size());
  head.number<uint64_t>(metadata.count());
  head.append(metadata.bytes());
  for (const NamedTensor& named : tensors) {
    const TensorInfo& tensor = *named.planned.tensor;
    head.string(named.name);
    head.number<uint32_t>(tensor.rows > 1 ? 2 : 1);
    head.number<uint64_t>(static_cast<uint64_t>(tensor.cols));
    if (tensor.rows > 1) head.number<uint64_t>(static_cast<uint64_t>(tensor.rows));
    head.number<uint32_t>(ggml_type(tensor.dtype));
    head.number<uint64_t>(named.planned.offset);
  }
  head.pad(aligned(head.size()));
  return head;
}

}  // namespace

std::string no_gguf_because(const ModelConfig& config) {
  if (config.family == Family::kOpt) {
    return "GGUF has no architecture for OPT; write a Hugging Face directory instead (a name that "
           "does not end in .gguf, and f32, f16 or bf16)";
  }
  if (config.rope.scaling != Rope::Scaling::kNone || !config.rope.frequency_divisors.empty()) {
    return "writing scaled rotary positions to GGUF is not supported; choose another shape";
  }
  return "";
}

PlannedModel plan_gguf(const Checkpoint& source) {
  const std::string reason = no_gguf_because(source.config());
  if (!reason.empty()) throw ModelError(source.config().name + ": " + reason);
  uint64_t data_bytes = 0;
  std::vector<NamedTensor> tensors = tensors_of(source, data_bytes);
  const Bytes head = header_of(metadata_of(source), tensors);
  PlannedFile file;
  file.head = head.text();
  file.bytes = head.size() + data_bytes;
  for (NamedTensor& named : tensors) {
    named.planned.offset += head.size();
    file.tensors.push_back(named.planned);
  }
  return {false, {std::move(file)}};
}

}  // namespace headrace
