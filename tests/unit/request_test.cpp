// Request lines: what is accepted, what is refused and with which words.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "runtime/requests/request_reader.h"

namespace headrace {
namespace {

using Item = std::variant<Request, BadLine>;

Item parse(const std::string& text, const RequestDefaults& defaults = {}) {
  return parse_request(text, 7, defaults);
}

Request good(const std::string& text, const RequestDefaults& defaults = {}) {
  const Item item = parse(text, defaults);
  if (const auto* bad = std::get_if<BadLine>(&item)) {
    ADD_FAILURE() << text.substr(0, 200) << "\n  refused: " << bad->message;
    return {};
  }
  return std::get<Request>(item);
}

BadLine bad(const std::string& text) {
  const Item item = parse(text);
  if (std::holds_alternative<Request>(item)) {
    ADD_FAILURE() << "accepted: " << text.substr(0, 200);
    return {};
  }
  return std::get<BadLine>(item);
}

// The short form with one more member.
std::string completion(const std::string& member) { return R"({"prompt":"a",)" + member + "}"; }
std::string chat(const std::string& member) {
  return R"({"messages":[{"role":"user","content":"a"}],)" + member + "}";
}

void expect_refused(const std::string& text, const std::string& words,
                    const std::string& code = "invalid_request") {
  const BadLine line = bad(text);
  EXPECT_EQ(line.code, code) << text.substr(0, 200);
  EXPECT_TRUE(line.message.starts_with("line 7: ")) << line.message;
  EXPECT_NE(line.message.find(words), std::string::npos) << line.message << "\n  for: " << text;
}

TEST(Request, BatchLine) {
  const Request request = good(
      R"({"custom_id":"a","method":"POST","url":"/v1/completions","body":{"model":"m","prompt":"p",)"
      R"("max_tokens":5,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"n":3,"seed":-1,)"
      R"("repetition_penalty":1.5,"stop":["x","y"],"logprobs":4,"ignore_eos":true,)"
      R"("logit_bias":{"20":-100,"3":1.5},"stream":false,"user":"u"}})");
  EXPECT_EQ(request.custom_id, "a");
  EXPECT_EQ(request.endpoint, Endpoint::kCompletions);
  EXPECT_EQ(std::get<std::string>(request.prompt), "p");
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(request.max_tokens, 5);
  EXPECT_EQ(request.n, 3);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(request.ignore_eos);
  SamplingParams expected;
  expected.temperature = 0.5f;
  expected.top_p = 0.9f;
  expected.top_k = 40;
  expected.min_p = 0.1f;
  expected.repetition_penalty = 1.5f;
  expected.seed = std::numeric_limits<uint64_t>::max();
  expected.logit_bias = {{3, 1.5f}, {20, -100.0f}};
  expected.top_logprobs = 4;
  EXPECT_EQ(request.sampling, expected);
}

TEST(Request, ChatLine) {
  const Request request = good(
      R"({"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":{"messages":[)"
      R"({"role":"developer","content":"s"},{"role":"user","content":[{"type":"text","text":"x "},)"
      R"({"type":"text","text":"y"}]},{"role":"assistant","content":"z","tool_calls":null}],)"
      R"("logprobs":true,"top_logprobs":2,"max_completion_tokens":9}})");
  EXPECT_EQ(request.endpoint, Endpoint::kChatCompletions);
  const auto& messages = std::get<std::vector<ChatMessage>>(request.prompt);
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[0].content, "s");
  EXPECT_EQ(messages[1].content, "x y");
  EXPECT_EQ(messages[2].role, "assistant");
  EXPECT_EQ(request.sampling.top_logprobs, 2);
  EXPECT_EQ(request.max_tokens, 9);
}

TEST(Request, ShortFormAndDefaults) {
  RequestDefaults defaults;
  defaults.max_tokens = 33;
  defaults.ignore_eos = true;
  defaults.sampling.seed = 99;
  defaults.sampling.temperature = 0.7f;
  Request request = good(R"({"prompt":[1,2.0,3]})", defaults);
  EXPECT_EQ(request.custom_id, "line-7");
  EXPECT_EQ(std::get<std::vector<int>>(request.prompt), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(request.max_tokens, 33);
  EXPECT_EQ(request.sampling, defaults.sampling);
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_EQ(request.n, 1);
  request = good(R"({"custom_id":"me","messages":[{"role":"user","content":"hi"}],"seed":null,)"
                 R"("max_tokens":null,"stop":null,"logprobs":null,"ignore_eos":false})",
                 defaults);
  EXPECT_EQ(request.custom_id, "me");
  EXPECT_EQ(request.endpoint, Endpoint::kChatCompletions);
  EXPECT_EQ(request.sampling.seed, 99u);
  EXPECT_EQ(request.max_tokens, 33);
  EXPECT_FALSE(request.ignore_eos);
}

TEST(Request, EdgeValuesAreAccepted) {
  EXPECT_EQ(good(completion(R"("seed":18446744073709551615)")).sampling.seed,
            18446744073709551615u);
  EXPECT_EQ(good(completion(R"("seed":-9223372036854775808)")).sampling.seed, 1ull << 63);
  EXPECT_EQ(good(completion(R"("seed":5.0)")).sampling.seed, 5u);
  EXPECT_EQ(good(completion(R"("max_tokens":5.0)")).max_tokens, 5);
  const float zero = good(completion(R"("temperature":-0.0)")).sampling.temperature;
  EXPECT_TRUE(zero == 0.0f && !std::signbit(zero));
  EXPECT_EQ(good(completion(R"("temperature":100)")).sampling.temperature, 100.0f);
  EXPECT_EQ(good(completion(R"("top_k":-1)")).sampling.top_k, 0);
  EXPECT_EQ(good(completion(R"("top_p":1)")).sampling.top_p, 1.0f);
  EXPECT_EQ(good(completion(R"("min_p":1)")).sampling.min_p, 1.0f);
  EXPECT_EQ(good(completion(R"("n":128,"temperature":0)")).n, 128);
  EXPECT_EQ(good(completion(R"("repetition_penalty":0.001)")).sampling.repetition_penalty, 0.001f);
  EXPECT_EQ(good(completion(R"("stop":"\n")")).stop, std::vector<std::string>{"\n"});
  EXPECT_EQ(good(completion(R"("logprobs":0)")).sampling.top_logprobs, 0);
  EXPECT_EQ(good(chat(R"("logprobs":true)")).sampling.top_logprobs, 0);
  EXPECT_EQ(good(chat(R"("logprobs":false,"top_logprobs":0)")).sampling.top_logprobs, std::nullopt);
  EXPECT_EQ(good(completion(R"("max_tokens":3,"max_completion_tokens":3)")).max_tokens, 3);
  EXPECT_EQ(std::get<std::string>(good(R"({"prompt":"\u00e9\u0000"})").prompt),
            std::string("\xc3\xa9\0", 3));
  good(chat(R"("presence_penalty":0,"frequency_penalty":0.0,"echo":false,"best_of":1,"tools":[],)"
            R"("response_format":{"type":"text"},"suffix":null,"metadata":{"a":1},"store":true)"));
  RequestDefaults with_logprobs;
  with_logprobs.sampling.top_logprobs = 3;
  EXPECT_EQ(good(chat(R"("n":1)"), with_logprobs).sampling.top_logprobs, 3);
  EXPECT_EQ(good(chat(R"("logprobs":false)"), with_logprobs).sampling.top_logprobs, std::nullopt);
}

TEST(Request, ValuesOutOfRangeAreRefusedByName) {
  for (const char* member :
       {R"("max_tokens":0)",
        R"("max_tokens":-1)",
        R"("max_tokens":1.5)",
        R"("max_tokens":"5")",
        R"("max_tokens":true)",
        R"("max_tokens":99999999999999999999)",
        R"("temperature":-0.1)",
        R"("temperature":100.1)",
        R"("temperature":"1")",
        R"("top_p":0)",
        R"("top_p":1.01)",
        R"("top_p":1e-300)",
        R"("top_k":-2)",
        R"("top_k":2.5)",
        R"("top_k":3000000000)",
        R"("min_p":-0.5)",
        R"("min_p":1.5)",
        R"("repetition_penalty":0)",
        R"("repetition_penalty":-1)",
        R"("repetition_penalty":1e-30)",
        R"("seed":1.5)",
        R"("seed":"1")",
        R"("seed":18446744073709551616)",
        R"("n":0)",
        R"("n":129)",
        R"("stop":"")",
        R"("stop":["a",""])",
        R"("stop":[1])",
        R"("stop":{})",
        R"("logprobs":-1)",
        R"("logprobs":21)",
        R"("logprobs":true)",
        R"("logit_bias":[])",
        R"("logit_bias":{"5":101})",
        R"("logit_bias":{"5":"1"})",
        R"("logit_bias":{"05":1})",
        R"("logit_bias":{"-5":1})",
        R"("logit_bias":{"x":1})",
        R"("logit_bias":{"4294967296":1})",
        R"("ignore_eos":1)",
        R"("model":7)",
        R"("stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"])"}) {
    const std::string text(member);
    expect_refused(completion(text), text.substr(1, text.find('"', 1) - 1));
  }
  expect_refused(chat(R"("logprobs":1)"), "\"logprobs\" must be true or false");
  expect_refused(chat(R"("top_logprobs":3)"), "needs \"logprobs\": true");
  expect_refused(chat(R"("logprobs":true,"top_logprobs":21)"), "from 0 to 20, not 21");
  expect_refused(completion(R"("top_logprobs":3)"), "give the number as \"logprobs\"");
  expect_refused(completion(R"("max_tokens":3,"max_completion_tokens":4)"), "differ");
  nlohmann::json line{{"prompt", "a"}};
  for (int i = 0; i < 1024; ++i) line["logit_bias"][std::to_string(i)] = 1;
  EXPECT_EQ(good(line.dump()).sampling.logit_bias.size(), 1024u);
  line["logit_bias"]["1024"] = 1;
  expect_refused(line.dump(), "up to 1024 entries");
}

TEST(Request, PromptsAndMessagesOfTheWrongShapeAreRefused) {
  expect_refused(R"({"prompt":["a","b"]})", "one line per prompt");
  expect_refused(R"({"prompt":[[1],[2]]})", "one line per prompt");
  expect_refused(R"({"prompt":[]})", "at least one token id");
  expect_refused(R"({"prompt":[1,-2]})", "prompt[1]");
  expect_refused(R"({"prompt":[1,2.5]})", "prompt[1]");
  expect_refused(R"({"prompt":[1,2147483648]})", "prompt[1]");
  expect_refused(R"({"prompt":5})", "a string or a list of token ids");
  expect_refused(R"({"prompt":null})", "\"prompt\" is missing");
  expect_refused(R"({"prompt":"a","messages":[]})", "keep one");
  expect_refused(R"({"max_tokens":5})", "neither \"prompt\" nor \"messages\"");
  expect_refused(R"({"messages":[]})", "at least one message");
  expect_refused(R"({"messages":["a"]})", "messages[0]");
  expect_refused(R"({"messages":[{"role":"user"}]})", "messages[0].content");
  expect_refused(R"({"messages":[{"role":"tool","content":"a"}]})", "messages[0].role");
  expect_refused(R"({"messages":[{"content":"a"}]})", "messages[0].role");
  expect_refused(R"({"messages":[{"role":"user","content":[]}]})", "messages[0].content");
  expect_refused(R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})",
                 "content[0].text");
  expect_refused(R"({"messages":[{"role":"user","content":"a","nmae":"b"}]})", "\"nmae\"");
  expect_refused(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
                 "content[0].type", "unsupported_parameter");
  expect_refused(R"({"messages":[{"role":"user","content":"a","name":"bob"}]})", "messages[0].name",
                 "unsupported_parameter");
}

TEST(Request, WhatHeadraceDoesNotHaveIsRefusedUnlessNeutral) {
  for (const char* member :
       {R"("stream":true)", R"("echo":true)", R"("best_of":2)", R"("suffix":"x")",
        R"("tools":[{"type":"function"}])", R"("response_format":{"type":"json_object"})",
        R"("presence_penalty":0.1)", R"("frequency_penalty":-1)", R"("stream_options":{})"}) {
    const std::string text(member);
    expect_refused(completion(text), text.substr(1, text.find('"', 1) - 1) + "\" is not supported",
                   "unsupported_parameter");
  }
  expect_refused(completion(R"("temprature":1)"), "unknown key \"temprature\": remove it");
  expect_refused(completion(R"("temprature":null)"), "unknown key");
  expect_refused(completion("\"\xc3\xa9\":1"), "\\u00e9");
}

TEST(Request, EnvelopeIsChecked) {
  const auto line = [](const std::string& id, const std::string& method, const std::string& url,
                       const std::string& rest = "") {
    return R"({"custom_id":)" + id + R"(,"method":)" + method + R"(,"url":)" + url +
           R"(,"body":{"prompt":"a"})" + rest + "}";
  };
  good(line(R"("x")", R"("POST")", R"("/v1/completions")"));
  good(line('"' + std::string(512, 'i') + '"', R"("POST")", R"("/v1/completions")"));
  expect_refused(line('"' + std::string(513, 'i') + '"', R"("POST")", R"("/v1/completions")"),
                 "1 to 512 bytes, not one of 513");
  expect_refused(line("5", R"("POST")", R"("/v1/completions")"), "\"custom_id\" must be a string");
  expect_refused(line(R"("")", R"("POST")", R"("/v1/completions")"), "\"custom_id\"");
  expect_refused(line("null", R"("POST")", R"("/v1/completions")"), "\"custom_id\"");
  expect_refused(line(R"("x")", R"("GET")", R"("/v1/completions")"),
                 "must be \"POST\", not \"GET\"");
  expect_refused(line(R"("x")", R"("POST")", R"("/v1/embeddings")"),
                 "\"/v1/chat/completions\", not \"/v1/embeddings\"");
  expect_refused(line(R"("x")", R"("POST")", R"("/v1/chat/completions")"), "body.prompt");
  expect_refused(line(R"("x")", R"("POST")", R"("/v1/completions")", R"(,"seed":1)"),
                 "\"seed\" beside \"body\"");
  expect_refused(R"({"method":"POST","url":"/v1/completions","body":{"prompt":"a"}})",
                 "\"custom_id\" is missing");
  expect_refused(R"({"custom_id":"x","method":"POST","url":"/v1/completions"})",
                 "\"body\" is missing");
  expect_refused(R"({"custom_id":"x","method":"POST","url":"/v1/completions","body":[]})",
                 "\"body\" must be an object");
  expect_refused(R"({"custom_id":"x","method":"POST","url":"/v1/completions","body":{"n":0}})",
                 "\"body.n\"");
  // The record of a bad line carries its id where that can be used.
  EXPECT_EQ(bad(R"({"custom_id":"x","prompt":5})").custom_id, "x");
  EXPECT_EQ(bad(R"({"custom_id":"","prompt":"a"})").custom_id, "line-7");
}

TEST(Request, TextThatIsNotJson) {
  expect_refused(R"({"prompt":})", "at byte 11", "invalid_json");
  expect_refused(R"({"prompt":"a"} x)", "at byte 16", "invalid_json");
  expect_refused(R"({"prompt":"a")", "at byte 14", "invalid_json");
  expect_refused(R"({"prompt":"a","temperature":NaN})", "at byte 29", "invalid_json");
  expect_refused(R"({"prompt":"a","temperature":1e999})", "too large", "invalid_json");
  expect_refused("{\"prompt\":\"a\xff\"}", "at byte 13", "invalid_json");
  expect_refused("{\"prompt\":\"\xed\xa0\x80\"}", "UTF-8", "invalid_json");
  expect_refused(R"({"prompt":"\ud800"})", "surrogate", "invalid_json");
  expect_refused("", "at byte 1", "invalid_json");
  expect_refused("[1]", "must be a JSON object, not a list");
  expect_refused(R"({"prompt":"a","n":1,"n":2})", "the key \"n\" stands twice");
  expect_refused(completion(R"("logit_bias":{"5":1,"5":2})"), "the key \"5\" stands twice");
  expect_refused(std::string(1 << 20, '['), "deeper than 64", "invalid_json");
  std::string objects;
  for (int i = 0; i < 200000; ++i) objects += R"({"a":)";
  expect_refused(objects, "deeper than 64", "invalid_json");
  std::string many = R"({"prompt":[0)";
  for (int i = 0; i < (4 << 20); ++i) many += ",0";
  expect_refused(many + "]}", "more than 4194304 values", "invalid_json");
  // A message stays short and printable, whatever the line holds.
  const BadLine line = bad("{\"" + std::string(1 << 20, 'k') + "\xfe");
  EXPECT_LT(line.message.size(), 400u);
  EXPECT_NO_THROW((void)nlohmann::json(line.message).dump());
}

// Lines that are nearly right: parameters with values of every kind, then bytes changed.
class Mutator {
 public:
  std::string line() {
    nlohmann::json body = nlohmann::json::parse(pick(kBodies));
    for (size_t members = below(4); members > 0; --members) {
      body[pick(kKeys)] = nlohmann::json::parse(pick(kValues));
    }
    const std::string url = body.contains("prompt") ? "/v1/completions" : "/v1/chat/completions";
    if (below(2) == 0) {
      body = {{"custom_id", "a"}, {"method", "POST"}, {"url", url}, {"body", body}};
    }
    std::string text = body.dump();
    for (size_t edits = below(4); edits > 0; --edits) edit(text);
    return text;
  }

 private:
  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }
  const std::string& pick(const std::vector<std::string>& from) { return from[below(from.size())]; }

  void edit(std::string& text) {
    const size_t at = below(text.size() + 1);
    const size_t count = std::min(text.size() - at, 1 + below(8));
    switch (below(5)) {
      case 0:
        text.insert(at, pick(kPieces));
        break;
      case 1:
        text.erase(at, count);
        break;
      case 2:
        text.insert(at, text.substr(at, count));
        break;
      case 3:
        text.insert(at, 1, static_cast<char>(random_()));
        break;
      default:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
    }
  }

  const std::vector<std::string> kBodies = {
      R"({"prompt":"some text\n"})", R"({"prompt":[1,2,3]})",
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"h\u00e9"}]}]})"};
  const std::vector<std::string> kKeys = {"prompt",
                                          "messages",
                                          "model",
                                          "max_tokens",
                                          "temperature",
                                          "top_p",
                                          "top_k",
                                          "min_p",
                                          "seed",
                                          "n",
                                          "repetition_penalty",
                                          "stop",
                                          "stream",
                                          "top_logprobs",
                                          "logprobs",
                                          "logit_bias",
                                          "ignore_eos",
                                          "custom_id",
                                          "tools",
                                          "user",
                                          "suffix",
                                          "presence_penalty"};
  const std::vector<std::string> kValues = {"null",
                                            "true",
                                            "0",
                                            "-0.0",
                                            "1",
                                            "-1",
                                            "5.0",
                                            "0.5",
                                            "1e300",
                                            "21",
                                            "\"a\"",
                                            "\"\"",
                                            "[]",
                                            "{}",
                                            "[[1]]",
                                            "[\"a\"]",
                                            "{\"5\":1}",
                                            "[1,2.5]",
                                            "1e-9",
                                            "[null]",
                                            "false",
                                            "9223372036854775808",
                                            "{\"type\":\"text\"}"};
  const std::vector<std::string> kPieces = {"{",    "}",     "[",  "]",      "\"",   ",",
                                            ":",    "null",  "-0", "1e400",  "true", "\\u0000",
                                            "\xff", "\"n\"", "\n", "\\ud83d"};
  std::mt19937 random_{20240607};
};

TEST(Request, MutatedLinesNeverCrash) {
  Mutator mutator;
  int requests = 0, bad_lines = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string text = mutator.line();
    const Item item = parse(text);
    if (const auto* line = std::get_if<BadLine>(&item)) {
      ++bad_lines;
      ASSERT_TRUE(line->message.starts_with("line 7: ")) << text;
      ASSERT_FALSE(line->code.empty()) << text;
      ASSERT_NO_THROW((void)nlohmann::json(line->message).dump()) << text;
    } else {
      ++requests;
      const auto& request = std::get<Request>(item);
      const SamplingParams& sampling = request.sampling;
      ASSERT_TRUE(request.n >= 1 && request.n <= 128 && request.max_tokens >= 1) << text;
      ASSERT_TRUE(sampling.temperature >= 0 && sampling.temperature <= 100) << text;
      ASSERT_TRUE(sampling.top_p > 0 && sampling.top_p <= 1 && sampling.top_k >= 0) << text;
      ASSERT_TRUE(sampling.min_p >= 0 && sampling.repetition_penalty > 0) << text;
      ASSERT_TRUE(!request.custom_id.empty()) << text;
    }
  }
  EXPECT_GT(requests, 1000);
  EXPECT_GT(bad_lines, 10000);
}

}  // namespace
}  // namespace headrace
