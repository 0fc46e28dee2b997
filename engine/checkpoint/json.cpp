#include "engine/checkpoint/json.h"

#include <unordered_set>
#include <vector>

#include "engine/error.h"

namespace headrace {

using nlohmann::json;

json parse_json_object(std::string_view text, const std::string& source) {
  constexpr int kMaxDepth = 64;
  std::vector<std::unordered_set<std::string>> keys;
  const auto on_event = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth) {
      throw ModelError(source + ": JSON nested deeper than " + std::to_string(kMaxDepth) +
                       "; the file is damaged, fetch it again");
    }
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key) {
      const std::string& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw ModelError(source + ": JSON key \"" + key +
                         "\" appears twice in one object; the file is damaged, fetch it again");
      }
    }
    return true;
  };
  json result;
  try {
    result = json::parse(text.begin(), text.end(), on_event);
  } catch (const json::parse_error& error) {
    throw ModelError(source + ": byte " + std::to_string(error.byte) +
                     ": not valid JSON; the file is damaged, fetch it again");
  } catch (const json::exception& error) {
    throw ModelError(source + ": not valid JSON (" + error.what() +
                     "); the file is damaged, fetch it again");
  }
  if (!result.is_object()) {
    throw ModelError(source + ": byte 0: not a JSON object; the file is damaged, fetch it again");
  }
  return result;
}

void JsonFields::fail(const char* key, const std::string& what) const {
  throw ModelError(source_ + ": field \"" + path_ + key + "\": " + what);
}

const json* JsonFields::find(const char* key) const {
  const auto entry = object_->find(key);
  return entry == object_->end() || entry->is_null() ? nullptr : &*entry;
}

std::optional<int> JsonFields::integer(const char* key, int min, int max) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  const bool fits =
      value->is_number_integer() &&
      (!value->is_number_unsigned() ||
       value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) &&
      value->get<int64_t>() >= min && value->get<int64_t>() <= max;
  if (!fits) {
    fail(key, value->dump().substr(0, 40) + " is not an integer from " + std::to_string(min) +
                  " to " + std::to_string(max));
  }
  return value->get<int>();
}

std::optional<double> JsonFields::real(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) fail(key, value->dump().substr(0, 40) + " is not a number");
  return value->get<double>();
}

std::optional<bool> JsonFields::boolean(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) fail(key, value->dump().substr(0, 40) + " is not true or false");
  return value->get<bool>();
}

std::optional<std::string> JsonFields::string(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(key, value->dump().substr(0, 40) + " is not a string");
  return value->get<std::string>();
}

std::optional<JsonFields> JsonFields::object(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) fail(key, value->dump().substr(0, 40) + " is not an object");
  return JsonFields(*value, source_, path_ + key + ".");
}

int JsonFields::required(const char* key) const {
  const std::optional<int> value = integer(key);
  if (!value) fail(key, "is missing; fetch the model's original config.json");
  return *value;
}

}  // namespace headrace
