#include "engine/checkpoint/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <span>
#include <unordered_set>
#include <utility>

#include "engine/checkpoint/read_file.h"
#include "engine/error.h"

namespace headrace {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read as little-endian");

// Value types of GGUF metadata.
enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

constexpr uint64_t kChunk = uint64_t{1} << 20;
// Headers of real models are below 40 MB; this bounds the memory that a hostile file can ask for.
constexpr uint64_t kMaxHeader = uint64_t{256} << 20;
constexpr uint64_t kMaxNameLength = 65535;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDims = 4;
// The least bytes an entry can take: key length, value type and one byte of value; name length,
// dimension count, one dimension, type and offset.
constexpr uint64_t kMinEntryBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

// Walks through the header front to back, reading the file in chunks.
class Cursor {
 public:
  explicit Cursor(const ReadFile& file) : file_(file), end_(std::min(file.size(), kMaxHeader)) {}

  uint64_t offset() const { return base_ + pos_; }
  uint64_t remaining() const { return end_ - offset(); }

  [[noreturn]] void fail(uint64_t at, const std::string& what,
                         const char* cure = "the file is damaged, fetch it again") const {
    throw ModelError(file_.path() + ": byte " + std::to_string(at) + ": " + what + "; " + cure);
  }

  // The next `count` bytes, valid until the next call.
  const std::byte* take(uint64_t count, const char* what) {
    if (count > remaining()) {
      if (end_ < file_.size())
        fail(offset(), std::string(what) + " makes the header exceed 256 MiB");
      fail(offset(), std::string(what) + " needs " + std::to_string(count) +
                         " bytes but the file ends after " + std::to_string(remaining()));
    }
    if (count > buffer_.size() - pos_) refill(count);
    const std::byte* data = buffer_.data() + pos_;
    pos_ += count;
    return data;
  }

  template <typename T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }

  std::string string(const char* what, uint64_t limit = kMaxHeader) {
    const uint64_t at = offset();
    const uint64_t length = number<uint64_t>(what);
    if (length > limit || length > remaining()) {
      fail(at, std::string(what) + " has an impossible length of " + std::to_string(length));
    }
    const std::byte* data = take(length, what);
    return std::string(reinterpret_cast<const char*>(data), length);
  }

 private:
  void refill(uint64_t count) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(pos_));
    base_ += pos_;
    pos_ = 0;
    const uint64_t have = buffer_.size();
    const uint64_t want = std::min(std::max(count, kChunk), end_ - base_);
    buffer_.resize(want);
    file_.read(base_ + have, std::span(buffer_).subspan(have));
  }

  const ReadFile& file_;
  uint64_t end_;
  std::vector<std::byte> buffer_;
  uint64_t base_ = 0;  // file offset of buffer_[0]
  uint64_t pos_ = 0;   // next byte within buffer_
};

uint64_t scalar_bytes(uint32_t type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool:
      return 1;
    case kUint16:
    case kInt16:
      return 2;
    case kUint32:
    case kInt32:
    case kFloat32:
      return 4;
    case kUint64:
    case kInt64:
    case kFloat64:
      return 8;
    default:
      return 0;
  }
}

template <typename Stored, typename Value>
std::vector<Value> numbers(Cursor& in, uint64_t count, const char* what) {
  std::vector<Value> out(count);
  const std::byte* data = in.take(count * sizeof(Stored), what);
  for (uint64_t i = 0; i < count; ++i) {
    Stored value;
    std::memcpy(&value, data + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<Value>(value);
  }
  return out;
}

GgufValue array_value(Cursor& in, const std::string& key) {
  const std::string what = "array \"" + key + "\"";
  const uint64_t at = in.offset();
  const uint32_t type = in.number<uint32_t>(what.c_str());
  const uint64_t count = in.number<uint64_t>(what.c_str());
  if (type == kArray) in.fail(at, what + " is an array of arrays, which is not supported");
  // A string takes at least the eight bytes of its length.
  const uint64_t least = type == kString ? 8 : scalar_bytes(type);
  if (least == 0) in.fail(at, what + " has unknown element type " + std::to_string(type));
  if (count > in.remaining() / least) {
    in.fail(at, what + " claims " + std::to_string(count) + " elements, more than the file holds");
  }
  switch (type) {
    case kUint8:
      return numbers<uint8_t, int64_t>(in, count, what.c_str());
    case kInt8:
      return numbers<int8_t, int64_t>(in, count, what.c_str());
    case kUint16:
      return numbers<uint16_t, int64_t>(in, count, what.c_str());
    case kInt16:
      return numbers<int16_t, int64_t>(in, count, what.c_str());
    case kUint32:
      return numbers<uint32_t, int64_t>(in, count, what.c_str());
    case kInt32:
      return numbers<int32_t, int64_t>(in, count, what.c_str());
    case kInt64:
      return numbers<int64_t, int64_t>(in, count, what.c_str());
    case kUint64: {
      auto values = numbers<uint64_t, int64_t>(in, count, what.c_str());
      for (int64_t value : values) {
        if (value < 0) in.fail(at, what + " holds a number above 2^63-1");
      }
      return values;
    }
    case kFloat32:
      return numbers<float, double>(in, count, what.c_str());
    case kFloat64:
      return numbers<double, double>(in, count, what.c_str());
    case kBool: {
      auto values = numbers<uint8_t, int64_t>(in, count, what.c_str());
      for (int64_t value : values) {
        if (value > 1) in.fail(at, what + " holds a bool that is neither 0 nor 1");
      }
      return values;
    }
    default: {
      std::vector<std::string> values;
      values.reserve(count);
      for (uint64_t i = 0; i < count; ++i) values.push_back(in.string(what.c_str()));
      return values;
    }
  }
}

GgufValue metadata_value(Cursor& in, const std::string& key) {
  const std::string what = "value of \"" + key + "\"";
  const uint64_t at = in.offset();
  const uint32_t type = in.number<uint32_t>(what.c_str());
  switch (type) {
    case kUint8:
      return uint64_t{in.number<uint8_t>(what.c_str())};
    case kInt8:
      return int64_t{in.number<int8_t>(what.c_str())};
    case kUint16:
      return uint64_t{in.number<uint16_t>(what.c_str())};
    case kInt16:
      return int64_t{in.number<int16_t>(what.c_str())};
    case kUint32:
      return uint64_t{in.number<uint32_t>(what.c_str())};
    case kInt32:
      return int64_t{in.number<int32_t>(what.c_str())};
    case kUint64:
      return in.number<uint64_t>(what.c_str());
    case kInt64:
      return in.number<int64_t>(what.c_str());
    case kFloat32:
      return double{in.number<float>(what.c_str())};
    case kFloat64:
      return in.number<double>(what.c_str());
    case kBool: {
      const uint8_t value = in.number<uint8_t>(what.c_str());
      if (value > 1) in.fail(at, what + " is a bool but neither 0 nor 1");
      return value == 1;
    }
    case kString:
      return in.string(what.c_str());
    case kArray:
      return array_value(in, key);
    default:
      in.fail(at, what + " has unknown type " + std::to_string(type));
  }
}

// Reads one tensor entry; its offset is still relative to the data section.
TensorInfo tensor_entry(Cursor& in) {
  TensorInfo tensor;
  tensor.name = in.string("tensor name", kMaxNameLength);
  const std::string what = "tensor \"" + tensor.name + "\"";
  const uint64_t at = in.offset();
  const uint32_t n_dims = in.number<uint32_t>(what.c_str());
  if (n_dims < 1 || n_dims > kMaxDims) {
    in.fail(at, what + " has " + std::to_string(n_dims) + " dimensions; 1 to 4 are possible");
  }
  constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max() / 8;
  int64_t elements = 1;
  for (uint32_t d = 0; d < n_dims; ++d) {
    const uint64_t dim_at = in.offset();
    const uint64_t dim = in.number<uint64_t>(what.c_str());
    if (dim == 0 || dim > static_cast<uint64_t>(kMaxElements / elements)) {
      in.fail(dim_at, what + " has an impossible dimension of " + std::to_string(dim));
    }
    elements *= static_cast<int64_t>(dim);
    if (d == 0) tensor.cols = elements;  // GGUF lists dimensions innermost first
  }
  tensor.rows = elements / tensor.cols;
  const uint64_t type_at = in.offset();
  const uint32_t type = in.number<uint32_t>(what.c_str());
  const std::optional<DType> dtype = dtype_from_ggml(type);
  if (!dtype) {
    in.fail(type_at,
            what + " has type number " + std::to_string(type) +
                ", which is not supported (supported: " + supported_ggml_types() + ")",
            "use a file with one of these types");
  }
  tensor.dtype = *dtype;
  const DTypeInfo& info = dtype_info(*dtype);
  if (tensor.cols % info.block_elements != 0) {
    in.fail(type_at, what + " has rows of " + std::to_string(tensor.cols) +
                         " elements, not a multiple of " + info.name + "'s block of " +
                         std::to_string(info.block_elements));
  }
  tensor.bytes = row_bytes(*dtype, elements);
  tensor.offset = in.number<uint64_t>(what.c_str());
  return tensor;
}

// Reads the tensor table; offsets become absolute and are checked to lie inside the file.
std::vector<TensorInfo> tensor_table(Cursor& in, uint64_t count, uint64_t alignment,
                                     uint64_t file_size) {
  std::vector<TensorInfo> tensors;
  std::vector<uint64_t> entry_offsets;
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < count; ++i) {
    entry_offsets.push_back(in.offset());
    TensorInfo tensor = tensor_entry(in);
    if (!names.insert(tensor.name).second) {
      in.fail(entry_offsets.back(), "tensor \"" + tensor.name + "\" appears twice");
    }
    tensors.push_back(std::move(tensor));
  }
  const uint64_t data = (in.offset() + alignment - 1) / alignment * alignment;
  for (uint64_t i = 0; i < count; ++i) {
    TensorInfo& tensor = tensors[i];
    const std::string what = "tensor \"" + tensor.name + "\"";
    if (tensor.offset % alignment != 0) {
      in.fail(entry_offsets[i], what + " starts at offset " + std::to_string(tensor.offset) +
                                    ", not a multiple of the alignment " +
                                    std::to_string(alignment));
    }
    if (data > file_size || tensor.offset > file_size - data ||
        tensor.bytes > file_size - data - tensor.offset) {
      in.fail(entry_offsets[i],
              what + " takes " + std::to_string(tensor.bytes) + " bytes at offset " +
                  std::to_string(tensor.offset) + " of the data, beyond the end of the file (" +
                  std::to_string(file_size) + " bytes)",
              "the file is truncated or damaged, fetch it again");
    }
    tensor.offset += data;
  }
  return tensors;
}

template <typename T>
const T* typed(const GgufHeader& header, std::string_view key, const char* expected) {
  const auto entry = header.metadata().find(key);
  if (entry == header.metadata().end()) return nullptr;
  const T* value = std::get_if<T>(&entry->second);
  if (value == nullptr) {
    throw ModelError(header.path() + ": key \"" + std::string(key) + "\": is not " + expected +
                     "; convert the model again");
  }
  return value;
}

}  // namespace

GgufHeader::GgufHeader(const std::string& path) : path_(path) {
  const ReadFile file(path);
  Cursor in(file);
  if (std::memcmp(in.take(4, "magic"), "GGUF", 4) != 0) {
    in.fail(0, "does not start with \"GGUF\"", "give a GGUF file");
  }
  const uint32_t version = in.number<uint32_t>("version");
  if (version != 2 && version != 3) {
    const bool swapped = version != 0 && (version & 0xFFFF) == 0;
    in.fail(4,
            swapped ? "is a big-endian GGUF file" : "has GGUF version " + std::to_string(version),
            "little-endian files of version 2 and 3 are supported; convert the model again");
  }
  version_ = static_cast<int>(version);

  const uint64_t tensor_count = in.number<uint64_t>("tensor count");
  const uint64_t entry_count = in.number<uint64_t>("metadata count");
  if (entry_count > in.remaining() / kMinEntryBytes) {
    in.fail(16, "claims " + std::to_string(entry_count) + " metadata entries, more than fit");
  }
  if (tensor_count > in.remaining() / kMinTensorBytes) {
    in.fail(8, "claims " + std::to_string(tensor_count) + " tensors, more than fit");
  }
  for (uint64_t i = 0; i < entry_count; ++i) {
    const uint64_t at = in.offset();
    std::string key = in.string("metadata key", kMaxNameLength);
    GgufValue value = metadata_value(in, key);
    const auto [entry, is_new] = metadata_.emplace(std::move(key), std::move(value));
    if (!is_new) in.fail(at, "metadata key \"" + entry->first + "\" appears twice");
  }
  if (integer("split.count").value_or(1) > 1) {
    throw ModelError(path + ": key \"split.count\": is one part of a split model; join the parts " +
                     "into one file first (llama-gguf-split --merge)");
  }
  const int64_t alignment =
      integer("general.alignment").value_or(static_cast<int64_t>(kDefaultAlignment));
  if (alignment < 1 || static_cast<uint64_t>(alignment) > kMaxAlignment ||
      !std::has_single_bit(static_cast<uint64_t>(alignment))) {
    throw ModelError(path + ": key \"general.alignment\": " + std::to_string(alignment) +
                     " is not a power of two up to " + std::to_string(kMaxAlignment) +
                     "; the file is damaged, fetch it again");
  }
  tensors_ = tensor_table(in, tensor_count, static_cast<uint64_t>(alignment), file.size());
}

std::optional<int64_t> GgufHeader::integer(std::string_view key) const {
  const auto entry = metadata_.find(key);
  if (entry == metadata_.end()) return std::nullopt;
  if (const uint64_t* value = std::get_if<uint64_t>(&entry->second)) {
    if (*value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      throw ModelError(path_ + ": key \"" + std::string(key) + "\": " + std::to_string(*value) +
                       " is too large; the file is damaged, fetch it again");
    }
    return static_cast<int64_t>(*value);
  }
  return *typed<int64_t>(*this, key, "an integer");
}

std::optional<double> GgufHeader::real(std::string_view key) const {
  const double* value = typed<double>(*this, key, "a floating-point number");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<bool> GgufHeader::boolean(std::string_view key) const {
  const bool* value = typed<bool>(*this, key, "a bool");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

const std::string* GgufHeader::string(std::string_view key) const {
  return typed<std::string>(*this, key, "a string");
}

const std::vector<std::string>* GgufHeader::strings(std::string_view key) const {
  return typed<std::vector<std::string>>(*this, key, "an array of strings");
}

const std::vector<int64_t>* GgufHeader::integers(std::string_view key) const {
  return typed<std::vector<int64_t>>(*this, key, "an array of integers");
}

const std::vector<double>* GgufHeader::reals(std::string_view key) const {
  return typed<std::vector<double>>(*this, key, "an array of floats");
}

bool is_gguf(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return false;
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  return file.read(magic, sizeof(magic)) && std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

}  // namespace headrace
