// Reader of GGUF files, versions 2 and 3, little-endian.
// Source: ggml `docs/gguf.md`. Layout: magic "GGUF", version u32, tensor count u64, metadata count
// u64, metadata (key, type, value), tensor infos (name, dims innermost first, type, offset),
// padding to general.alignment (32), tensor data.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/checkpoint/checkpoint.h"

namespace headrace {

using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<std::string>>;

// The header of a GGUF file. Every count and length is checked against the file size before
// anything is allocated, and a header beyond 256 MiB is refused, so that memory stays bounded.
// Unsigned metadata is held as uint64_t, signed as int64_t, floating-point as double; arrays of
// integers and of bools as int64_t. Arrays of arrays and parts of a split model are refused.
// Throws ModelError (file, offset, what to do) and IoError.
class GgufHeader {
 public:
  explicit GgufHeader(const std::string& path);

  const std::string& path() const { return path_; }
  int version() const { return version_; }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  // Tensors with absolute offsets, checked to lie inside the file.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  // A value of the wrong type is a ModelError that names the key; a missing one is nullopt/nullptr.
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> real(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  const std::string* string(std::string_view key) const;
  const std::vector<std::string>* strings(std::string_view key) const;
  const std::vector<int64_t>* integers(std::string_view key) const;
  const std::vector<double>* reals(std::string_view key) const;

 private:
  std::string path_;
  int version_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<TensorInfo> tensors_;
};

// True if `path` is a file that starts with the GGUF magic.
bool is_gguf(const std::string& path);

}  // namespace headrace
