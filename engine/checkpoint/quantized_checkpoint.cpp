#include "engine/checkpoint/quantized_checkpoint.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "engine/checkpoint/file_checkpoint.h"
#include "engine/error.h"
#include "engine/group_quant.h"
#include "engine/half.h"

namespace headrace {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kNative, WeightFormat::kQ8, WeightFormat::kQ4};
constexpr size_t kBlocksAtOnce = 32;  // 2048 elements

// The matrices but for the table of positions.
bool is_quantised_role(Role role) {
  return !is_vector_role(role) && role != Role::kPositionEmbedding;
}

// `count` plain elements to floats.
void to_floats(DType dtype, const std::byte* from, size_t count, float* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, count * 4);
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, from + i * 2, 2);
    to[i] = dtype == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
  }
}

class QuantizedCheckpoint : public Checkpoint {
 public:
  QuantizedCheckpoint(std::unique_ptr<Checkpoint> inner, WeightFormat format)
      : inner_(std::move(inner)), weights_(format), bits_(format == WeightFormat::kQ8 ? 8 : 4) {
    config_ = inner_->config();
    files_ = inner_->files();
    file_bytes_ = inner_->file_bytes();
    tensors_ = inner_->tensors();
    for (size_t i = 0; i < tensors_.size(); ++i) index_of_[tensors_[i].name] = i;
    for (const Role role : all_roles()) {
      if (!is_quantised_role(role)) continue;
      const int layers = is_layer_role(role) ? config_.n_layers : 1;
      for (int layer = 0; layer < layers; ++layer) {
        if (const TensorInfo* tensor = inner_->find(role, layer)) convert(*tensor, role);
      }
    }
    finish(files_.front());
  }

  bool qk_rows_interleaved() const override { return inner_->qk_rows_interleaved(); }

  std::string format() const override {
    return inner_->format() + ", weights " + weight_format_name(weights_);
  }

  void read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> out) const override {
    check_range(tensor, offset, out.size());
    const TensorInfo& source = inner_->tensors()[index_of_.at(tensor.name)];
    if (source.dtype == tensor.dtype) return inner_->read(source, offset, out);
    const auto block_bytes = static_cast<size_t>(dtype_info(tensor.dtype).block_bytes);
    std::array<std::byte, kBlocksAtOnce * 68> blocks;
    while (!out.empty()) {
      const uint64_t first = offset / block_bytes;
      const size_t skip = offset % block_bytes;
      const size_t count =
          std::min(kBlocksAtOnce, (skip + out.size() + block_bytes - 1) / block_bytes);
      quantize(source, first, count, blocks.data());
      const size_t part = std::min(out.size(), count * block_bytes - skip);
      std::memcpy(out.data(), blocks.data() + skip, part);
      offset += part;
      out = out.subspan(part);
    }
  }

  void drop_cache(const TensorInfo& tensor, uint64_t offset, uint64_t bytes) const override {
    const TensorInfo& source = inner_->tensors()[index_of_.at(tensor.name)];
    if (source.dtype != tensor.dtype) {
      const auto block_bytes = static_cast<uint64_t>(dtype_info(tensor.dtype).block_bytes);
      const uint64_t source_bytes =
          kQuantGroup * static_cast<uint64_t>(dtype_info(source.dtype).block_bytes);
      const uint64_t end = (offset + bytes + block_bytes - 1) / block_bytes;
      offset = offset / block_bytes * source_bytes;
      bytes = end * source_bytes - offset;
    }
    inner_->drop_cache(source, offset, bytes);
  }

 protected:
  std::vector<std::string> names(Role role, int layer) const override {
    const TensorInfo* tensor = inner_->find(role, layer);
    if (!tensor) return {};
    return {tensor->name};
  }

 private:
  void convert(const TensorInfo& tensor, Role role) {
    TensorInfo& own = tensors_[index_of_.at(tensor.name)];
    if (own.dtype != tensor.dtype) return;  // a tied head is the embedding, which is done
    const std::string what = place_of(tensor) + " (" + role_name(role) +
                             ") cannot be quantised by --weights " + weight_format_name(weights_) +
                             ": ";
    if (!is_plain(tensor.dtype)) {
      throw std::invalid_argument(what + "it is " + dtype_name(tensor.dtype) +
                                  " already; use --weights native, or the model in F32, F16 or "
                                  "BF16");
    }
    if (tensor.cols % kQuantGroup != 0) {
      throw std::invalid_argument(what + "its rows of " + std::to_string(tensor.cols) +
                                  " elements are not a multiple of " + std::to_string(kQuantGroup) +
                                  "; use --weights native");
    }
    own.dtype = weights_ == WeightFormat::kQ8 ? DType::kG8 : DType::kG4;
    own.bytes = row_bytes(own.dtype, own.cols) * static_cast<size_t>(own.rows);
  }

  // Blocks [first, first + count) of a tensor. Rows are whole blocks, so blocks need not know them.
  void quantize(const TensorInfo& source, uint64_t first, size_t count, std::byte* blocks) const {
    std::array<std::byte, kBlocksAtOnce * kQuantGroup * 4> raw;
    std::array<float, kBlocksAtOnce * kQuantGroup> values;
    const auto element = static_cast<size_t>(dtype_info(source.dtype).block_bytes);
    const size_t elements = count * kQuantGroup;
    inner_->read(source, first * kQuantGroup * element, std::span(raw.data(), elements * element));
    const int64_t bad = first_not_finite(source.dtype, static_cast<int64_t>(elements), raw.data());
    if (bad >= 0) {
      const int64_t at = static_cast<int64_t>(first) * kQuantGroup + bad;
      refuse_not_finite(source, at / source.cols, at % source.cols);
    }
    to_floats(source.dtype, raw.data(), elements, values.data());
    const size_t block_bytes = bits_ == 8 ? 68 : 36;
    for (size_t b = 0; b < count; ++b) {
      quantize_block(std::span<const float, kQuantGroup>(&values[b * kQuantGroup], kQuantGroup),
                     bits_, blocks + b * block_bytes);
    }
  }

  std::unique_ptr<Checkpoint> inner_;
  WeightFormat weights_;
  int bits_;
  std::unordered_map<std::string, size_t> index_of_;  // position in tensors_, by name
};

}  // namespace

const char* weight_format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::kNative:
      return "native";
    case WeightFormat::kQ8:
      return "q8";
    case WeightFormat::kQ4:
      return "q4";
  }
  return "?";
}

WeightFormat weight_format_of(std::string_view name) {
  for (const WeightFormat format : kFormats) {
    if (name == weight_format_name(format)) return format;
  }
  throw std::invalid_argument("there is no weight format \"" + std::string(name) +
                              "\"; use native, q8 or q4");
}

std::unique_ptr<Checkpoint> quantized(std::unique_ptr<Checkpoint> inner, WeightFormat format) {
  if (format == WeightFormat::kNative) return inner;
  return std::make_unique<QuantizedCheckpoint>(std::move(inner), format);
}

}  // namespace headrace
