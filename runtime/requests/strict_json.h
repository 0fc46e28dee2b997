// JSON of a request line, read with the limits that text from outside needs.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

namespace headrace {

inline constexpr int kMaxJsonDepth = 64;
inline constexpr size_t kMaxJsonValues = size_t{4} << 20;  // about 64 MiB of parsed numbers

// The text is not JSON, or exceeds a limit. what(): "at byte 12: unexpected ...", valid UTF-8.
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct StrictJson {
  nlohmann::json value;
  // The first key that stands twice in one object. Its last value is the one in `value`.
  std::optional<std::string> repeated_key;
};

// Uses no stack per nesting level. Throws JsonError.
StrictJson parse_strict_json(const std::string& text);

}  // namespace headrace
