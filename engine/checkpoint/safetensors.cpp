#include "engine/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/checkpoint/json.h"
#include "engine/error.h"

namespace headrace {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors is read as little-endian");

constexpr uint64_t kMaxHeader = 100'000'000;

struct StoredType {
  const char* name;
  uint64_t bytes;
  std::optional<DType> dtype;  // absent where no role can use it
};

constexpr StoredType kTypes[] = {
    {"F32", 4, DType::kF32},   {"F16", 2, DType::kF16},      {"BF16", 2, DType::kBF16},
    {"F64", 8, std::nullopt},  {"I64", 8, std::nullopt},     {"U64", 8, std::nullopt},
    {"I32", 4, std::nullopt},  {"U32", 4, std::nullopt},     {"I16", 2, std::nullopt},
    {"U16", 2, std::nullopt},  {"I8", 1, std::nullopt},      {"U8", 1, std::nullopt},
    {"BOOL", 1, std::nullopt}, {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt},
};

const StoredType* stored_type(std::string_view name) {
  for (const StoredType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

// One entry of the header, with its place relative to the data section.
struct Entry {
  TensorInfo tensor;
  const StoredType* type = nullptr;
  std::string type_name;
};

class HeaderReader {
 public:
  explicit HeaderReader(const ReadFile& file) : file_(file) {}

  SafetensorsHeader read() {
    const json root = header();
    std::vector<Entry> entries;
    for (const auto& [name, value] : root.items()) {
      if (name != "__metadata__") entries.push_back(entry(name, value));
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.tensor.offset, a.tensor.bytes) <
             std::pair(b.tensor.offset, b.tensor.bytes);
    });
    uint64_t end = 0;
    const std::string* last = nullptr;
    SafetensorsHeader result;
    for (Entry& item : entries) {
      TensorInfo& tensor = item.tensor;
      if (tensor.bytes > 0) {
        if (tensor.offset < end)
          fail(tensor.name, "data_offsets overlap those of \"" + *last + "\"");
        end = tensor.offset + tensor.bytes;
        last = &tensor.name;
      }
    }
    for (Entry& item : entries) {
      item.tensor.offset += data_;
      if (item.type != nullptr && item.type->dtype) {
        result.tensors.push_back(std::move(item.tensor));
      } else {
        result.unusable[item.tensor.name] = file_.path() + ": tensor \"" + item.tensor.name +
                                            "\" has dtype " + item.type_name +
                                            ", which is not supported; supported are F32, F16, " +
                                            "BF16 (convert the model to one of them)";
      }
    }
    return result;
  }

 private:
  [[noreturn]] void fail(const std::string& name, const std::string& what) const {
    throw ModelError(file_.path() + ": tensor \"" + name + "\": " + what +
                     "; the file is damaged, fetch it again");
  }

  json header() {
    uint64_t length = 0;
    if (file_.size() < sizeof(length)) {
      throw ModelError(file_.path() + ": byte 0: is too short for a safetensors file (" +
                       std::to_string(file_.size()) + " bytes); fetch it again");
    }
    file_.read(0, std::as_writable_bytes(std::span(&length, 1)));
    if (length > kMaxHeader || length > file_.size() - sizeof(length)) {
      throw ModelError(file_.path() + ": byte 0: claims a header of " + std::to_string(length) +
                       " bytes, but the file has " + std::to_string(file_.size()) +
                       " bytes and headers at most " + std::to_string(kMaxHeader) +
                       "; the file is damaged or truncated, fetch it again");
    }
    data_ = sizeof(length) + length;
    data_bytes_ = file_.size() - data_;
    std::string text(length, '\0');
    file_.read(sizeof(length), std::as_writable_bytes(std::span(text)));
    return parse_json_object(text, file_.path() + ": header");
  }

  uint64_t number(const std::string& name, const char* field, const json& value) const {
    if (!value.is_number_unsigned()) {
      fail(name, std::string(field) + " holds " + value.dump().substr(0, 40) +
                     " instead of a number that is not negative");
    }
    return value.get<uint64_t>();
  }

  Entry entry(const std::string& name, const json& value) const {
    if (!value.is_object()) fail(name, "is not described by an object");
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (!value.contains(field)) fail(name, std::string(field) + " is missing");
    }
    if (!value["dtype"].is_string()) fail(name, "dtype is not a string");
    if (!value["shape"].is_array()) fail(name, "shape is not a list");
    const json& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2) fail(name, "data_offsets is not a pair");

    Entry result;
    result.type_name = value["dtype"].get<std::string>();
    result.type = stored_type(result.type_name);
    TensorInfo& tensor = result.tensor;
    tensor.name = name;
    read_shape(value["shape"], tensor);

    const uint64_t begin = number(name, "data_offsets", offsets[0]);
    const uint64_t end = number(name, "data_offsets", offsets[1]);
    if (begin > end || end > data_bytes_) {
      fail(name, "data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
                     "] reach beyond the data of " + std::to_string(data_bytes_) + " bytes");
    }
    tensor.offset = begin;
    tensor.bytes = end - begin;
    if (result.type != nullptr) {
      const uint64_t need = static_cast<uint64_t>(tensor.rows * tensor.cols) * result.type->bytes;
      if (tensor.bytes != need) {
        fail(name, "data_offsets span " + std::to_string(tensor.bytes) + " bytes, but shape and " +
                       "dtype need " + std::to_string(need));
      }
      if (result.type->dtype) tensor.dtype = *result.type->dtype;
    }
    return result;
  }

  void read_shape(const json& shape, TensorInfo& tensor) const {
    constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max() / 8;
    tensor.rows = 1;
    tensor.cols = 1;
    for (const json& item : shape) {
      const uint64_t dim = number(tensor.name, "shape", item);
      // What was the innermost dimension so far is an outer one.
      tensor.rows *= tensor.cols;
      const int64_t others = std::max<int64_t>(tensor.rows, 1);
      if (dim > static_cast<uint64_t>(kMaxElements / others)) {
        fail(tensor.name, "shape has an impossible dimension of " + std::to_string(dim));
      }
      tensor.cols = static_cast<int64_t>(dim);
    }
  }

  const ReadFile& file_;
  uint64_t data_ = 0;  // where the data section starts
  uint64_t data_bytes_ = 0;
};

}  // namespace

SafetensorsHeader read_safetensors_header(const ReadFile& file) {
  return HeaderReader(file).read();
}

}  // namespace headrace
