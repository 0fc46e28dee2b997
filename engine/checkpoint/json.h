// JSON of model files: strict parsing and typed access, with errors that name file and field.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace headrace {

// Parses `text`. Throws ModelError, starting with `source` and naming the byte, for anything that
// is not a JSON object, repeats a key within an object, or nests deeper than 64.
nlohmann::json parse_json_object(std::string_view text, const std::string& source);

// Typed access to the members of an object. A member that is null counts as absent; one of another
// type or out of range is a ModelError that names `source`, the key and what is allowed.
class JsonFields {
 public:
  // `object` must outlive this. `path` precedes keys in messages ("rope_scaling.").
  JsonFields(const nlohmann::json& object, std::string source, std::string path = "")
      : object_(&object), source_(std::move(source)), path_(std::move(path)) {}

  const nlohmann::json* find(const char* key) const;
  // It is there, if only as null.
  bool has(const char* key) const { return object_->contains(key); }
  std::optional<int> integer(const char* key, int min = 1,
                             int max = std::numeric_limits<int>::max()) const;
  std::optional<double> real(const char* key) const;
  std::optional<bool> boolean(const char* key) const;
  std::optional<std::string> string(const char* key) const;
  std::optional<JsonFields> object(const char* key) const;
  // The integer, which must be there.
  int required(const char* key) const;

  const std::string& source() const { return source_; }
  [[noreturn]] void fail(const char* key, const std::string& what) const;

 private:
  const nlohmann::json* object_;
  std::string source_;
  std::string path_;
};

}  // namespace headrace
