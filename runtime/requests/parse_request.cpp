#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <variant>

#include "runtime/requests/field_checks.h"
#include "runtime/requests/parse_body.h"
#include "runtime/requests/request_reader.h"
#include "runtime/requests/strict_json.h"

namespace headrace {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxCustomId = 512;  // bytes

bool usable_id(const Json& id) {
  if (!id.is_string()) return false;
  const size_t size = id.get_ref<const std::string&>().size();
  return size > 0 && size <= kMaxCustomId;
}

void check_custom_id(const Json& id) {
  if (usable_id(id)) return;
  const bool too_long = id.is_string() && id != "";
  throw_invalid(
      "\"custom_id\" must be a string of 1 to 512 bytes, not " +
      (too_long ? "one of " + std::to_string(id.get_ref<const std::string&>().size()) : shown(id)));
}

// {"custom_id", "method", "url", "body"}
void parse_batch_line(const Json& line, Request& request) {
  for (const auto& [key, value] : line.items()) {
    if (key != "custom_id" && key != "method" && key != "url" && key != "body") {
      throw_invalid("unknown key " + shown(key) +
                    " beside \"body\": remove it, or move it into "
                    "\"body\" if it is a parameter");
    }
  }
  for (const char* key : {"custom_id", "method", "url", "body"}) {
    if (!line.contains(key)) {
      throw_invalid(std::string("\"") + key +
                    "\" is missing: a batch line has custom_id, method, url and body");
    }
  }
  if (line["method"] != "POST") {
    throw_invalid("\"method\" must be \"POST\", not " + shown(line["method"]));
  }
  const Json& url = line["url"];
  if (url == "/v1/completions") {
    request.endpoint = Endpoint::kCompletions;
  } else if (url == "/v1/chat/completions") {
    request.endpoint = Endpoint::kChatCompletions;
  } else {
    throw_invalid("\"url\" must be \"/v1/completions\" or \"/v1/chat/completions\", not " +
                  shown(url));
  }
  if (!line["body"].is_object()) {
    throw_invalid("\"body\" must be an object, not " + shown(line["body"]));
  }
  parse_body(line["body"], "body.", request);
}

// {"prompt" or "messages", parameters...}: the body itself, which may carry a custom_id.
void parse_short_line(Json& line, Request& request) {
  const bool has_prompt = line.contains("prompt");
  if (has_prompt == line.contains("messages")) {
    throw_invalid(has_prompt ? "\"prompt\" and \"messages\" are both there: keep one"
                             : "neither \"prompt\" nor \"messages\" (short form) nor "
                               "\"body\" (batch form) is there: give one of them");
  }
  request.endpoint = has_prompt ? Endpoint::kCompletions : Endpoint::kChatCompletions;
  line.erase("custom_id");
  parse_body(line, "", request);
}

void parse_line(Json& line, const RequestDefaults& defaults, Request& request) {
  request.max_tokens = defaults.max_tokens;
  request.sampling = defaults.sampling;
  request.ignore_eos = defaults.ignore_eos;
  if (line.contains("custom_id")) check_custom_id(line["custom_id"]);
  if (line.contains("body") || line.contains("url") || line.contains("method")) {
    parse_batch_line(line, request);
  } else {
    parse_short_line(line, request);
  }
}

}  // namespace

std::variant<Request, BadLine> parse_request(const std::string& text, int64_t line,
                                             const RequestDefaults& defaults) {
  Request request;
  request.custom_id = "line-" + std::to_string(line);
  const std::string place = "line " + std::to_string(line) + ": ";
  try {
    StrictJson json = parse_strict_json(text);
    if (!json.value.is_object()) {
      throw_invalid("must be a JSON object, not " + shown(json.value));
    }
    const auto id = json.value.find("custom_id");
    if (id != json.value.end() && usable_id(*id)) request.custom_id = id->get<std::string>();
    if (json.repeated_key) {
      throw_invalid("the key " + shown(*json.repeated_key) + " stands twice: keep one");
    }
    parse_line(json.value, defaults, request);
    return request;
  } catch (const RequestFault& fault) {
    return BadLine{request.custom_id, fault.code, place + fault.what()};
  } catch (const JsonError& error) {
    return BadLine{
        request.custom_id, "invalid_json",
        place + "not one whole JSON object: " + error.what() + ". Write one JSON object per line"};
  }
}

}  // namespace headrace
