#include "runtime/requests/parse_body.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>
#include <string_view>

#include "runtime/requests/field_checks.h"

namespace headrace {
namespace {

using Json = nlohmann::json;

constexpr int kMaxTokensLimit = 1 << 30;  // leaves room to add a prompt's length
constexpr int kMaxChoices = 128;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxLogitBias = 1024;
constexpr int kMaxTopLogprobs = 20;
constexpr float kMaxTemperature = 100.0f;  // OpenAI allows 2, others more
constexpr float kMinPenalty = 0.001f;      // beyond these a logit could become infinite
constexpr float kMaxPenalty = 1000.0f;

// One body while it is read: each method takes one key's value.
class BodyParser {
 public:
  BodyParser(const Json& body, const std::string& path, Request& request)
      : body_(body), path_(path), request_(request) {}

  void parse();

 private:
  struct Key {
    std::string_view name;
    void (BodyParser::*read)(const Json& value, const std::string& field);
  };
  static const std::array<Key, 17> kKeys;

  void prompt(const Json& value, const std::string& field);
  void messages(const Json& value, const std::string& field);
  void model(const Json& value, const std::string& field);
  void max_tokens(const Json& value, const std::string& field);
  void temperature(const Json& value, const std::string& field);
  void top_p(const Json& value, const std::string& field);
  void top_k(const Json& value, const std::string& field);
  void min_p(const Json& value, const std::string& field);
  void repetition_penalty(const Json& value, const std::string& field);
  void seed(const Json& value, const std::string& field);
  void choices(const Json& value, const std::string& field);
  void stop(const Json& value, const std::string& field);
  void logprobs(const Json& value, const std::string& field);
  void top_logprobs(const Json& value, const std::string& field);
  void logit_bias(const Json& value, const std::string& field);
  void ignore_eos(const Json& value, const std::string& field);

  void settle_logprobs();
  bool is_chat() const { return request_.endpoint == Endpoint::kChatCompletions; }

  const Json& body_;
  const std::string& path_;
  Request& request_;
  bool has_prompt_ = false;
  std::optional<int> max_tokens_;
  std::optional<bool> wants_logprobs_;  // chat
  std::optional<int> top_logprobs_;     // chat
};

const std::array<BodyParser::Key, 17> BodyParser::kKeys = {{
    {"prompt", &BodyParser::prompt},
    {"messages", &BodyParser::messages},
    {"model", &BodyParser::model},
    {"max_tokens", &BodyParser::max_tokens},
    {"max_completion_tokens", &BodyParser::max_tokens},
    {"temperature", &BodyParser::temperature},
    {"top_p", &BodyParser::top_p},
    {"top_k", &BodyParser::top_k},
    {"min_p", &BodyParser::min_p},
    {"repetition_penalty", &BodyParser::repetition_penalty},
    {"seed", &BodyParser::seed},
    {"n", &BodyParser::choices},
    {"stop", &BodyParser::stop},
    {"logprobs", &BodyParser::logprobs},
    {"top_logprobs", &BodyParser::top_logprobs},
    {"logit_bias", &BodyParser::logit_bias},
    {"ignore_eos", &BodyParser::ignore_eos},
}};

// Keys that do not touch the text.
constexpr std::array<std::string_view, 6> kIgnored = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"};

// Whether a parameter that headrace does not have is given with a value that asks for nothing.
// nullopt: not such a parameter.
std::optional<bool> asks_for_nothing(std::string_view key, const Json& value) {
  if (key == "stream" || key == "echo") return value == false;
  if (key == "best_of") return value.is_number() && value == 1;
  if (key == "presence_penalty" || key == "frequency_penalty") {
    return value.is_number() && value == 0;
  }
  if (key == "suffix") return value == "";
  if (key == "tools" || key == "functions") return value.is_array() && value.empty();
  if (key == "tool_choice" || key == "function_call") return value == "none" || value == "auto";
  if (key == "parallel_tool_calls") return value.is_boolean();
  if (key == "response_format") return value == Json{{"type", "text"}};
  if (key == "modalities") return value == Json::array({"text"});
  if (key == "stream_options" || key == "audio" || key == "prediction" ||
      key == "reasoning_effort" || key == "verbosity" || key == "web_search_options") {
    return false;  // only null asks for nothing, and that is skipped before
  }
  return std::nullopt;
}

void BodyParser::parse() {
  for (const auto& [name, value] : body_.items()) {
    const std::string field = path_ + name;
    const auto key =
        std::find_if(kKeys.begin(), kKeys.end(), [&n = name](const Key& k) { return k.name == n; });
    if (key != kKeys.end()) {
      if (!value.is_null()) (this->*key->read)(value, field);
      continue;
    }
    if (std::find(kIgnored.begin(), kIgnored.end(), name) != kIgnored.end()) continue;
    const std::optional<bool> nothing = asks_for_nothing(name, value);
    if (!nothing) {
      throw_invalid("unknown key " + shown(path_ + name) +
                    ": remove it, headrace has no parameter of this name");
    }
    if (!*nothing && !value.is_null()) {
      throw_unsupported(
          field, name == "stream" ? "remove it, results of a batch come whole" : "remove it");
    }
  }
  if (!has_prompt_) {
    throw_invalid(is_chat() ? "\"" + path_ + "messages\" is missing: a list of messages"
                            : "\"" + path_ +
                                  "prompt\" is missing: a string or a list of "
                                  "token ids");
  }
  settle_logprobs();
}

void BodyParser::prompt(const Json& value, const std::string& field) {
  if (is_chat()) {
    throw_invalid("\"" + field +
                  "\" does not go with chat completions: use "
                  "\"messages\", or the url /v1/completions");
  }
  has_prompt_ = true;
  if (value.is_string()) {
    request_.prompt = value.get<std::string>();
    return;
  }
  if (!value.is_array()) throw_wrong(field, "a string or a list of token ids", value);
  if (value.empty()) throw_wrong(field, "a string or a list of at least one token id", value);
  if (value[0].is_string() || value[0].is_array()) {
    throw_invalid("\"" + field +
                  "\" is a list of prompts: write one line per prompt "
                  "(a string or one list of token ids)");
  }
  std::vector<int> ids;
  ids.reserve(value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    const std::optional<int64_t> id = integral(value[i]);
    if (!id || *id < 0 || *id > std::numeric_limits<int>::max()) {
      throw_wrong(field + "[" + std::to_string(i) + "]", "a token id (a whole number from 0)",
                  value[i]);
    }
    ids.push_back(static_cast<int>(*id));
  }
  request_.prompt = std::move(ids);
}

void BodyParser::messages(const Json& value, const std::string& field) {
  if (!is_chat()) {
    throw_invalid("\"" + field +
                  "\" does not go with completions: use \"prompt\", or the url "
                  "/v1/chat/completions");
  }
  request_.prompt = parse_messages(value, field);
  has_prompt_ = true;
}

void BodyParser::model(const Json& value, const std::string& field) {
  if (!value.is_string()) throw_wrong(field, "a string", value);
  request_.model = value.get<std::string>();
}

void BodyParser::max_tokens(const Json& value, const std::string& field) {
  const int count = whole(value, field, 1, kMaxTokensLimit);
  if (max_tokens_ && *max_tokens_ != count) {
    throw_invalid("\"" + path_ + "max_tokens\" and \"" + path_ +
                  "max_completion_tokens\" differ: keep one");
  }
  max_tokens_ = count;
  request_.max_tokens = count;
}

void BodyParser::temperature(const Json& value, const std::string& field) {
  request_.sampling.temperature =
      number(value, field, 0.0f, kMaxTemperature, "a number from 0 (greedy) to 100");
}

void BodyParser::top_p(const Json& value, const std::string& field) {
  const std::string allowed = "a number above 0 and up to 1 (1: off)";
  const float p = number(value, field, 0.0f, 1.0f, allowed);
  if (p <= 0.0f) throw_wrong(field, allowed, value);
  request_.sampling.top_p = p;
}

void BodyParser::top_k(const Json& value, const std::string& field) {
  const std::optional<int64_t> k = integral(value);
  if (!k || *k < -1 || *k > std::numeric_limits<int>::max()) {
    throw_wrong(field, "a whole number from 0 (0 or -1: off)", value);
  }
  request_.sampling.top_k = std::max(0, static_cast<int>(*k));
}

void BodyParser::min_p(const Json& value, const std::string& field) {
  request_.sampling.min_p = number(value, field, 0.0f, 1.0f, "a number from 0 (off) to 1");
}

void BodyParser::repetition_penalty(const Json& value, const std::string& field) {
  const std::string allowed = "a number above 0, from 0.001 to 1000 (1: off)";
  const float penalty = number(value, field, 0.0f, kMaxPenalty, allowed);
  if (penalty < kMinPenalty) throw_wrong(field, allowed, value);
  request_.sampling.repetition_penalty = penalty;
}

void BodyParser::seed(const Json& value, const std::string& field) {
  if (value.is_number_unsigned()) {
    request_.sampling.seed = value.get<uint64_t>();
    return;
  }
  const std::optional<int64_t> v = integral(value);
  if (!v) throw_wrong(field, "a whole number of 64 bits", value);
  request_.sampling.seed = static_cast<uint64_t>(*v);
}

void BodyParser::choices(const Json& value, const std::string& field) {
  request_.n = whole(value, field, 1, kMaxChoices);
}

void BodyParser::stop(const Json& value, const std::string& field) {
  const std::string allowed = "a string or a list of up to 16 strings, none of them empty";
  const Json list = value.is_string() ? Json::array({value}) : value;
  if (!list.is_array() || list.size() > kMaxStops) throw_wrong(field, allowed, value);
  for (const Json& item : list) {
    if (!item.is_string() || item == "") throw_wrong(field, allowed, item);
    request_.stop.push_back(item.get<std::string>());
  }
}

void BodyParser::logprobs(const Json& value, const std::string& field) {
  if (is_chat()) {
    wants_logprobs_ = flag(value, field);
  } else {
    request_.sampling.top_logprobs = whole(value, field, 0, kMaxTopLogprobs);
  }
}

void BodyParser::top_logprobs(const Json& value, const std::string& field) {
  if (!is_chat()) {
    throw_invalid("\"" + field +
                  "\" goes with chat completions only: give the number as \"logprobs\"");
  }
  top_logprobs_ = whole(value, field, 0, kMaxTopLogprobs);
}

// Chat completions say in two keys what completions say in one.
void BodyParser::settle_logprobs() {
  if (!is_chat()) return;
  std::optional<int>& asked = request_.sampling.top_logprobs;
  const bool wanted = wants_logprobs_.value_or(asked.has_value());
  if (!wanted && top_logprobs_.value_or(0) > 0) {
    throw_invalid("\"" + path_ + "top_logprobs\" needs \"" + path_ + "logprobs\": true beside it");
  }
  if (!wanted) {
    asked.reset();
  } else if (top_logprobs_ || !asked) {
    asked = top_logprobs_.value_or(0);
  }
}

void BodyParser::logit_bias(const Json& value, const std::string& field) {
  if (!value.is_object() || value.size() > kMaxLogitBias) {
    throw_wrong(field, "an object of up to 1024 entries (token id: bias)", value);
  }
  std::vector<std::pair<int, float>> biases;
  for (const auto& [key, bias] : value.items()) {
    int id = 0;
    const char* const end = key.data() + key.size();
    const auto [stop_at, error] = std::from_chars(key.data(), end, id);
    // One spelling per id, or "7" and "07" would be two entries for one token.
    if (error != std::errc() || stop_at != end || id < 0 || std::to_string(id) != key) {
      throw_invalid("\"" + field + "\" has the key " + shown(key) +
                    ": keys must be token ids like \"50256\"");
    }
    biases.emplace_back(
        id, number(bias, field + "." + key, -100.0f, 100.0f, "a number from -100 to 100"));
  }
  std::sort(biases.begin(), biases.end());
  request_.sampling.logit_bias = std::move(biases);
}

void BodyParser::ignore_eos(const Json& value, const std::string& field) {
  request_.ignore_eos = flag(value, field);
}

}  // namespace

void parse_body(const Json& body, const std::string& path, Request& request) {
  BodyParser(body, path, request).parse();
}

}  // namespace headrace
