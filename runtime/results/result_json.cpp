#include "runtime/results/result_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>

#include "runtime/requests/id_set.h"
#include "runtime/text/utf8.h"

namespace headrace {
namespace {

using Json = nlohmann::ordered_json;

std::string dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

std::string hex_of(const std::string& custom_id) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  uint64_t hash = custom_id_hash(custom_id);
  std::string hex(16, '0');
  for (size_t i = hex.size(); i-- > 0; hash >>= 4) hex[i] = kDigits[hash & 15];
  return hex;
}

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

int64_t characters(std::string_view utf8) {
  int64_t count = 0;
  for (const char byte : utf8) count += is_continuation(byte) ? 0 : 1;
  return count;
}

// How logprobs name a token. One that is a part of a character has no text of its own and is
// written as in the OpenAI API: bytes:\xe2\x82
std::string token_name(int token, const ResultFormat& format) {
  if (format.token_raw_bytes) {
    const std::string bytes = format.token_raw_bytes(token);
    if (!is_valid_utf8(bytes)) {
      std::string name = "bytes:";
      for (const char c : bytes) {
        constexpr std::string_view kDigits = "0123456789abcdef";
        const auto byte = static_cast<unsigned char>(c);
        name += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
      }
      return name;
    }
  }
  if (format.token_text) return format.token_text(token);
  return "token_id:" + std::to_string(token);
}

Json number(float value) {
  if (std::isnan(value)) return nullptr;
  return printable(value);
}

// Where each token begins in the choice's text, in characters. A token that goes on with a
// character begins where that character does; what is not in the text (end of sequence, a stop
// string cut off) begins at its end.
Json text_offsets(const ChoiceResult& choice, const ResultFormat& format) {
  Json offsets = Json::array();
  const int64_t end = characters(choice.text);
  int64_t begun = 0;
  for (const TokenLogprob& entry : choice.logprobs) {
    const std::string bytes = format.token_raw_bytes ? format.token_raw_bytes(entry.token) : "";
    const bool goes_on = !bytes.empty() && is_continuation(bytes[0]) && begun > 0;
    offsets.push_back(std::min(end, begun - (goes_on ? 1 : 0)));
    begun += characters(bytes);
  }
  return offsets;
}

Json completion_logprobs(const ChoiceResult& choice, const ResultFormat& format) {
  Json tokens = Json::array(), values = Json::array(), tops = Json::array();
  bool any_top = false;
  for (size_t i = 0; i < choice.logprobs.size(); ++i) {
    tokens.push_back(token_name(choice.logprobs[i].token, format));
    values.push_back(number(choice.logprobs[i].logprob));
    Json top = Json::object();
    for (const TokenLogprob& other : choice.alternatives[i]) {
      // Of two tokens with the same text the better one stands.
      top.emplace(token_name(other.token, format), number(other.logprob));
      any_top = true;
    }
    tops.push_back(std::move(top));
  }
  return Json{{"tokens", std::move(tokens)},
              {"token_logprobs", std::move(values)},
              {"top_logprobs", any_top ? std::move(tops) : Json()},
              {"text_offset", text_offsets(choice, format)}};
}

Json chat_token(const TokenLogprob& entry, const ResultFormat& format) {
  Json bytes;
  if (format.token_raw_bytes) {
    bytes = Json::array();
    for (const char c : format.token_raw_bytes(entry.token)) {
      bytes.push_back(static_cast<unsigned char>(c));
    }
  }
  return Json{{"token", token_name(entry.token, format)},
              {"logprob", number(entry.logprob)},
              {"bytes", std::move(bytes)}};
}

Json chat_logprobs(const ChoiceResult& choice, const ResultFormat& format) {
  Json content = Json::array();
  for (size_t i = 0; i < choice.logprobs.size(); ++i) {
    Json token = chat_token(choice.logprobs[i], format);
    Json& top = token["top_logprobs"] = Json::array();
    for (const TokenLogprob& other : choice.alternatives[i]) {
      top.push_back(chat_token(other, format));
    }
    content.push_back(std::move(token));
  }
  return Json{{"content", std::move(content)}};
}

void check_logprobs(const RequestResult& result, const ChoiceResult& choice) {
  const size_t count = choice.logprobs.size();
  if (choice.alternatives.size() == count && (count == 0 || count == choice.token_ids.size())) {
    return;
  }
  throw std::invalid_argument("result of " + result.custom_id + ": " + std::to_string(count) +
                              " logprobs and " + std::to_string(choice.alternatives.size()) +
                              " lists of alternatives for " +
                              std::to_string(choice.token_ids.size()) + " tokens");
}

Json choice_json(const RequestResult& result, size_t index, const ResultFormat& format) {
  const ChoiceResult& choice = result.choices[index];
  check_logprobs(result, choice);
  const bool is_chat = result.endpoint == Endpoint::kChatCompletions;
  Json json{{"index", index}};
  if (is_chat) {
    json["message"] = Json{{"role", "assistant"}, {"content", choice.text}};
  } else {
    json["text"] = choice.text;
  }
  json["finish_reason"] = choice.finish_reason;
  if (choice.logprobs.empty()) {
    json["logprobs"] = nullptr;
  } else {
    json["logprobs"] =
        is_chat ? chat_logprobs(choice, format) : completion_logprobs(choice, format);
  }
  if (format.token_ids) json["token_ids"] = choice.token_ids;
  return json;
}

Json body_json(const RequestResult& result, const ResultFormat& format, int64_t created,
               const std::string& hex) {
  const bool is_chat = result.endpoint == Endpoint::kChatCompletions;
  Json choices = Json::array();
  int64_t completion_tokens = 0;
  for (size_t i = 0; i < result.choices.size(); ++i) {
    choices.push_back(choice_json(result, i, format));
    completion_tokens += static_cast<int64_t>(result.choices[i].token_ids.size());
  }
  return Json{{"id", (is_chat ? "chatcmpl-" : "cmpl-") + hex},
              {"object", is_chat ? "chat.completion" : "text_completion"},
              {"created", created},
              {"model", result.model},
              {"choices", std::move(choices)},
              {"usage",
               {{"prompt_tokens", result.prompt_tokens},
                {"completion_tokens", completion_tokens},
                {"total_tokens", result.prompt_tokens + completion_tokens}}}};
}

std::string line_json(const std::string& custom_id, int status, Json body, Json error) {
  const std::string hex = hex_of(custom_id);
  return dump(
      Json{{"id", "batch_req_" + hex},
           {"custom_id", custom_id},
           {"response",
            {{"status_code", status}, {"request_id", "req_" + hex}, {"body", std::move(body)}}},
           {"error", std::move(error)}});
}

}  // namespace

std::string result_line(const RequestResult& result, const ResultFormat& format, int64_t created) {
  return line_json(result.custom_id, 200,
                   body_json(result, format, created, hex_of(result.custom_id)), nullptr);
}

std::string error_line(const BadLine& error) {
  const Json body{
      {"error",
       {{"message", error.message}, {"type", "invalid_request_error"}, {"code", error.code}}}};
  return line_json(error.custom_id, 400, body,
                   Json{{"code", error.code}, {"message", error.message}});
}

double printable(float value) {
  if (std::isinf(value)) return value < 0 ? -9999.0 : 9999.0;
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  double shortest = 0;
  std::from_chars(text, end, shortest);
  // Rounding twice (decimal to double to float) could in principle miss; then all digits stand.
  return static_cast<float>(shortest) == value ? shortest : static_cast<double>(value);
}

}  // namespace headrace
