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

constexpr std::string_view kRequestId = "req_";

std::string hex_of(uint64_t hash) {
  constexpr std::string_view kDigits = "0123456789abcdef";
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
// character begins where that character does; what is not in the text (a special token, a stop
// string cut off) begins where the text goes on, or at its end.
Json text_offsets(const ChoiceResult& choice, const ResultFormat& format) {
  Json offsets = Json::array();
  const int64_t end = characters(choice.text);
  int64_t begun = 0;
  for (const TokenLogprob& entry : choice.logprobs) {
    const bool in_text =
        format.token_raw_bytes && !(format.is_special && format.is_special(entry.token));
    const std::string bytes = in_text ? format.token_raw_bytes(entry.token) : "";
    const bool goes_on = !bytes.empty() && is_continuation(bytes[0]) && begun > 0;
    offsets.push_back(std::min(end, begun - (goes_on ? 1 : 0)));
    begun += characters(bytes);
  }
  return offsets;
}

// Results are put together as text: a tree of all their log-probabilities would take several times
// the room.
void append(std::string& out, const Json& json) { out += dump(json); }

// What follows goes into the object that was appended last.
void reopen(std::string& out, std::string_view key) {
  out.back() = ',';
  out += '"';
  out += key;
  out += "\":";
}

void append_list(std::string& out, size_t count, const auto& append_item) {
  out += '[';
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out += ',';
    append_item(i);
  }
  out += ']';
}

Json top_logprobs(const std::vector<TokenLogprob>& alternatives, const ResultFormat& format) {
  Json top = Json::object();
  for (const TokenLogprob& other : alternatives) {
    // Of two tokens with the same text the better one stands.
    top.emplace(token_name(other.token, format), number(other.logprob));
  }
  return top;
}

void append_completion_logprobs(std::string& out, const ChoiceResult& choice,
                                const ResultFormat& format) {
  const std::vector<TokenLogprob>& chosen = choice.logprobs;
  out += "{\"tokens\":";
  append_list(out, chosen.size(),
              [&](size_t i) { append(out, token_name(chosen[i].token, format)); });
  out += ",\"token_logprobs\":";
  append_list(out, chosen.size(), [&](size_t i) { append(out, number(chosen[i].logprob)); });
  out += ",\"top_logprobs\":";
  const auto has_some = [](const std::vector<TokenLogprob>& tokens) { return !tokens.empty(); };
  if (std::ranges::any_of(choice.alternatives, has_some)) {
    append_list(out, chosen.size(),
                [&](size_t i) { append(out, top_logprobs(choice.alternatives[i], format)); });
  } else {
    out += "null";
  }
  out += ",\"text_offset\":";
  append(out, text_offsets(choice, format));
  out += '}';
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

void append_chat_logprobs(std::string& out, const ChoiceResult& choice,
                          const ResultFormat& format) {
  out += "{\"content\":";
  append_list(out, choice.logprobs.size(), [&](size_t i) {
    Json token = chat_token(choice.logprobs[i], format);
    Json& top = token["top_logprobs"] = Json::array();
    for (const TokenLogprob& other : choice.alternatives[i]) {
      top.push_back(chat_token(other, format));
    }
    append(out, token);
  });
  out += '}';
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

void append_choice(std::string& out, const RequestResult& result, size_t index,
                   const ResultFormat& format) {
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
  append(out, json);
  reopen(out, "logprobs");
  if (choice.logprobs.empty()) {
    out += "null";
  } else if (is_chat) {
    append_chat_logprobs(out, choice, format);
  } else {
    append_completion_logprobs(out, choice, format);
  }
  out += '}';
  if (!format.token_ids) return;
  reopen(out, "token_ids");
  append(out, choice.token_ids);
  out += '}';
}

void append_body(std::string& out, const RequestResult& result, const ResultFormat& format,
                 int64_t created) {
  const bool is_chat = result.endpoint == Endpoint::kChatCompletions;
  int64_t completion_tokens = 0;
  for (const ChoiceResult& choice : result.choices) {
    completion_tokens += static_cast<int64_t>(choice.token_ids.size());
  }
  append(out, Json{{"id", (is_chat ? "chatcmpl-" : "cmpl-") +
                              hex_of(custom_id_hash(result.custom_id))},
                   {"object", is_chat ? "chat.completion" : "text_completion"},
                   {"created", created},
                   {"model", result.model}});
  reopen(out, "choices");
  append_list(out, result.choices.size(),
              [&](size_t i) { append_choice(out, result, i, format); });
  out += '}';
  reopen(out, "usage");
  append(out, Json{{"prompt_tokens", result.prompt_tokens},
                   {"completion_tokens", completion_tokens},
                   {"total_tokens", result.prompt_tokens + completion_tokens}});
  out += '}';
}

// A record whose body `append_content` appends.
std::string record(const std::string& custom_id, uint64_t digest, int status, const Json& error,
                   const auto& append_content) {
  std::string out;
  append(out, Json{{"id", "batch_req_" + hex_of(custom_id_hash(custom_id))},
                   {"custom_id", custom_id}});
  reopen(out, "response");
  append(out,
         Json{{"status_code", status}, {"request_id", std::string(kRequestId) + hex_of(digest)}});
  reopen(out, "body");
  append_content(out);
  out += "}}";
  reopen(out, "error");
  append(out, error);
  out += '}';
  return out;
}

}  // namespace

std::string result_line(const RequestResult& result, const ResultFormat& format, int64_t created) {
  return record(result.custom_id, result.digest, 200, nullptr,
                [&](std::string& out) { append_body(out, result, format, created); });
}

std::string error_line(const BadLine& error) {
  const Json body{
      {"error",
       {{"message", error.message}, {"type", "invalid_request_error"}, {"code", error.code}}}};
  return record(error.custom_id, error.digest, 400,
                Json{{"code", error.code}, {"message", error.message}},
                [&](std::string& out) { append(out, body); });
}

std::optional<uint64_t> digest_of(std::string_view request_id) {
  if (!request_id.starts_with(kRequestId)) return std::nullopt;
  const std::string_view hex = request_id.substr(kRequestId.size());
  uint64_t digest = 0;
  const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), digest, 16);
  if (error != std::errc{} || end != hex.data() + hex.size()) return std::nullopt;
  return digest;
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
