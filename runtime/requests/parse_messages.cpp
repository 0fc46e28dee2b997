#include "runtime/requests/field_checks.h"
#include "runtime/requests/parse_body.h"

namespace headrace {
namespace {

using Json = nlohmann::json;

std::string part_text(const Json& part, const std::string& field) {
  if (!part.is_object()) {
    throw_wrong(field, "an object {\"type\":\"text\",\"text\":\"...\"}", part);
  }
  const Json type = part.value("type", Json());
  if (type != "text") {
    throw_unsupported(field + ".type",
                      "only parts of type \"text\" are, not " + shown(type) + "; remove the part");
  }
  for (const auto& [key, value] : part.items()) {
    if (key != "type" && key != "text") {
      throw_invalid("\"" + field + "\" has the unknown key " + shown(key) + ": remove it");
    }
  }
  const Json text = part.value("text", Json());
  if (!text.is_string()) throw_wrong(field + ".text", "a string", text);
  return text.get<std::string>();
}

// A string, or a list of text parts, which are put together as they are.
std::string content_text(const Json& content, const std::string& field) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array() || content.empty()) {
    throw_wrong(field, "a string or a list of {\"type\":\"text\",\"text\":\"...\"} parts", content);
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    text += part_text(content[i], field + "[" + std::to_string(i) + "]");
  }
  return text;
}

// What answers of other servers carry empty is accepted empty: {"tool_calls": null}.
void check_message_keys(const Json& message, const std::string& field) {
  for (const auto& [key, value] : message.items()) {
    if (key == "role" || key == "content") continue;
    const bool extra = key == "name" || key == "tool_calls" || key == "tool_call_id" ||
                       key == "function_call" || key == "refusal" || key == "audio" ||
                       key == "annotations";
    if (!extra)
      throw_invalid("\"" + field + "\" has the unknown key " + shown(key) + ": remove it");
    const bool empty = value.is_null() || (value.is_array() && value.empty());
    if (!empty) throw_unsupported(field + "." + key, "remove it");
  }
}

}  // namespace

std::vector<ChatMessage> parse_messages(const Json& list, const std::string& field) {
  if (!list.is_array() || list.empty()) throw_wrong(field, "a list of at least one message", list);
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    const Json& message = list[i];
    const std::string place = field + "[" + std::to_string(i) + "]";
    if (!message.is_object()) {
      throw_wrong(place, "an object with \"role\" and \"content\"", message);
    }
    check_message_keys(message, place);
    const Json role = message.value("role", Json());
    if (role != "system" && role != "developer" && role != "user" && role != "assistant") {
      throw_wrong(place + ".role", "\"system\", \"developer\", \"user\" or \"assistant\"", role);
    }
    const auto content = message.find("content");
    messages.push_back(
        {role == "developer" ? "system" : role.get<std::string>(),
         content_text(content == message.end() ? Json() : *content, place + ".content")});
  }
  return messages;
}

}  // namespace headrace
