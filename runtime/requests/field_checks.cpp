#include "runtime/requests/field_checks.h"

#include <cmath>
#include <limits>

namespace headrace {

using Json = nlohmann::json;

void throw_wrong(const std::string& field, const std::string& allowed, const Json& value) {
  throw_invalid("\"" + field + "\" must be " + allowed + ", not " + shown(value));
}

void throw_invalid(const std::string& message) { throw RequestFault("invalid_request", message); }

void throw_unsupported(const std::string& field, const std::string& cure) {
  throw RequestFault("unsupported_parameter", "\"" + field + "\" is not supported: " + cure);
}

std::string shown(const Json& value) {
  constexpr size_t kLongest = 60;
  if (value.is_array()) return value.empty() ? "an empty list" : "a list";
  if (value.is_object()) return "an object";
  if (!value.is_string()) return value.dump();
  const std::string& text = value.get_ref<const std::string&>();
  // A cut may fall into a UTF-8 character; `replace` mends it.
  std::string quoted = Json(text.substr(0, kLongest))
                           .dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > kLongest) quoted += "...";
  return quoted;
}

std::optional<int64_t> integral(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto v = value.get<uint64_t>();
    if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(v);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double v = value.get<double>();
    // Beyond 2^53 a double no longer says which integer was meant.
    if (std::trunc(v) == v && std::fabs(v) <= 9007199254740992.0) return static_cast<int64_t>(v);
  }
  return std::nullopt;
}

int whole(const Json& value, const std::string& field, int low, int high) {
  const std::optional<int64_t> v = integral(value);
  if (!v || *v < low || *v > high) {
    throw_wrong(field, "a whole number from " + std::to_string(low) + " to " + std::to_string(high),
                value);
  }
  return static_cast<int>(*v);
}

float number(const Json& value, const std::string& field, float low, float high,
             const std::string& allowed) {
  if (!value.is_number()) throw_wrong(field, allowed, value);
  const double v = value.get<double>();
  if (!(v >= static_cast<double>(low) && v <= static_cast<double>(high))) {
    throw_wrong(field, allowed, value);
  }
  return static_cast<float>(v) + 0.0f;
}

bool flag(const Json& value, const std::string& field) {
  if (!value.is_boolean()) throw_wrong(field, "true or false", value);
  return value.get<bool>();
}

}  // namespace headrace
