#include "tests/unit/memory_checkpoint.h"

#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

#include "engine/half.h"
#include "tests/reference/block_fields.h"

namespace headrace::test {
namespace {

// Values of about this size, so that a model of them neither dies out nor overflows.
float scale_of(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
    case DType::kG8:
      return 0.002f;
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kG4:
      return 0.02f;
    case DType::kQ6_K:
      return 0.00005f;
    default:
      return 0.001f;
  }
}

}  // namespace

ModelConfig small_llama() {
  ModelConfig config;
  config.name = "small";
  config.n_layers = 2;
  config.d_model = config.d_embed = 32;
  config.n_heads = 2;
  config.n_kv_heads = 1;
  config.head_dim = 16;
  config.d_ffn = 64;
  config.vocab_size = 80;
  config.max_positions = 128;
  config.eos_token_ids = {2};
  return config;
}

std::string MemoryCheckpoint::tensor_name(Role role, int layer) {
  if (!is_layer_role(role)) return role_name(role);
  return std::to_string(layer) + "." + role_name(role);
}

MemoryCheckpoint::MemoryCheckpoint(const ModelConfig& config, Options options)
    : options_(std::move(options)) {
  config_ = config;
  files_ = {"memory"};
  std::mt19937_64 random(options_.seed);
  uint64_t end = 0;
  const auto add = [&](Role role, int layer) {
    if (!has_role(config, role) || (role == Role::kHead && config.tied_head)) return;
    const RoleShape shape = role_shape(config, role);
    TensorInfo tensor;
    tensor.name = tensor_name(role, layer);
    tensor.rows = shape.rows;
    tensor.cols = shape.cols;
    tensor.dtype = shape.rows == 1 ? options_.vector_format : options_.matrix_format(role, layer);
    tensor.offset = end;
    tensor.bytes = row_bytes(tensor.dtype, tensor.cols) * static_cast<size_t>(tensor.rows);
    end += tensor.bytes;

    std::vector<std::byte>& data = data_[tensor.name];
    data.resize(tensor.bytes);
    const DTypeInfo& info = dtype_info(tensor.dtype);
    const auto block = static_cast<size_t>(info.block_bytes);
    for (size_t at = 0; at < data.size(); at += block) {
      const auto uniform = [&] { return static_cast<float>(random() >> 40) * 0x1p-23f - 1.0f; };
      if (info.block_elements == 1) {
        const float value = shape.rows == 1 ? 1.0f + 0.1f * uniform() : 0.2f * uniform();
        const uint16_t half = tensor.dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
        std::memcpy(data.data() + at, block == 4 ? static_cast<const void*>(&value) : &half, block);
        continue;
      }
      for (size_t i = 0; i < block; ++i) data[at + i] = static_cast<std::byte>(random() >> 32);
      for (const int offset : reference::f16_fields(tensor.dtype)) {
        const uint16_t half = f32_to_f16(scale_of(tensor.dtype) * uniform());
        std::memcpy(data.data() + at + static_cast<size_t>(offset), &half, sizeof half);
      }
    }
    tensors_.push_back(std::move(tensor));
  };
  for (const Role role : all_roles()) {
    if (!is_layer_role(role)) add(role, 0);
  }
  for (int layer = 0; layer < config.n_layers; ++layer) {
    for (const Role role : all_roles()) {
      if (is_layer_role(role)) add(role, layer);
    }
  }
  file_bytes_ = {end};
  finish("memory");
}

void MemoryCheckpoint::read(const TensorInfo& tensor, uint64_t offset,
                            std::span<std::byte> out) const {
  if (options_.before_read) options_.before_read(tensor, offset);
  const std::vector<std::byte>& data = data_.at(tensor.name);
  if (offset > data.size() || out.size() > data.size() - offset) {
    throw std::logic_error("a read outside tensor " + tensor.name);
  }
  std::memcpy(out.data(), data.data() + offset, out.size());
  const std::lock_guard lock(mutex_);
  reads_[tensor.name].push_back({offset, out.size()});
}

std::map<std::string, std::vector<MemoryCheckpoint::Read>> MemoryCheckpoint::reads() const {
  const std::lock_guard lock(mutex_);
  return reads_;
}

void MemoryCheckpoint::forget_reads() {
  const std::lock_guard lock(mutex_);
  reads_.clear();
}

}  // namespace headrace::test
