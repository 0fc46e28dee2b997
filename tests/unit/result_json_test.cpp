// The lines of a results file: shape, exact floats, tokens that are no whole characters.
#include "runtime/results/result_json.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

namespace headrace {
namespace {

using Json = nlohmann::json;

// Token 1: "He", 2: the first two bytes of the euro sign, 3: its last, 4: end of sequence.
ResultFormat format(bool token_ids = false) {
  const auto bytes = [](int token) -> std::string {
    return token == 1 ? "He" : token == 2 ? "\xe2\x82" : token == 3 ? "\xac" : "<|end|>";
  };
  return {token_ids, bytes, bytes};
}

RequestResult result(Endpoint endpoint) {
  ChoiceResult choice;
  choice.text = "He\xe2\x82\xac";
  choice.token_ids = {1, 2, 3, 4};
  choice.finish_reason = "stop";
  choice.logprobs = {{1, -0.1f}, {2, -1e-7f}, {3, -0.0f}, {4, -12345.678f}};
  choice.alternatives = {{{1, -0.1f}, {3, -3.0f}}, {{2, -1e-7f}}, {{3, -0.0f}}, {{1, -2.0f}}};
  RequestResult made;
  made.custom_id = "a\"b";
  made.digest = 0xab;
  made.endpoint = endpoint;
  made.model = "m";
  made.prompt_tokens = 5;
  made.choices = {choice, ChoiceResult{"x", {1}, "length", {}, {}}};
  return made;
}

TEST(ResultJson, Completion) {
  const Json line = Json::parse(result_line(result(Endpoint::kCompletions), format(true), 1700));
  EXPECT_EQ(line["custom_id"], "a\"b");
  EXPECT_TRUE(line["error"].is_null());
  const std::string id = line["id"];
  ASSERT_EQ(id.size(), 26u);
  EXPECT_TRUE(id.starts_with("batch_req_"));
  EXPECT_EQ(id.find_first_not_of("0123456789abcdef", 10), std::string::npos);
  EXPECT_EQ(line["response"]["status_code"], 200);
  EXPECT_EQ(line["response"]["request_id"], "req_00000000000000ab");
  const Json& body = line["response"]["body"];
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["created"], 1700);
  EXPECT_EQ(body["model"], "m");
  EXPECT_EQ(body["usage"],
            Json({{"prompt_tokens", 5}, {"completion_tokens", 5}, {"total_tokens", 10}}));
  ASSERT_EQ(body["choices"].size(), 2u);
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["text"], "He\xe2\x82\xac");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["token_ids"], Json({1, 2, 3, 4}));
  const Json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json({"He", "bytes:\\xe2\\x82", "bytes:\\xac", "<|end|>"}));
  EXPECT_EQ(logprobs["text_offset"], Json({0, 2, 2, 3}));
  EXPECT_EQ(logprobs["token_logprobs"][0], -0.1);
  EXPECT_EQ(logprobs["top_logprobs"][0], Json({{"He", -0.1}, {"bytes:\\xac", -3.0}}));
  EXPECT_TRUE(std::signbit(logprobs["token_logprobs"][2].get<float>()));
  EXPECT_TRUE(body["choices"][1]["logprobs"].is_null());
}

TEST(ResultJson, Chat) {
  const Json line = Json::parse(result_line(result(Endpoint::kChatCompletions), format(), 1));
  const Json& body = line["response"]["body"];
  EXPECT_EQ(body["object"], "chat.completion");
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["message"], Json({{"role", "assistant"}, {"content", "He\xe2\x82\xac"}}));
  EXPECT_FALSE(choice.contains("text"));
  EXPECT_FALSE(choice.contains("token_ids"));
  const Json& content = choice["logprobs"]["content"];
  ASSERT_EQ(content.size(), 4u);
  EXPECT_EQ(content[1]["token"], "bytes:\\xe2\\x82");
  EXPECT_EQ(content[1]["bytes"], Json({0xe2, 0x82}));
  EXPECT_EQ(content[1]["logprob"].get<float>(), -1e-7f);
  EXPECT_EQ(content[0]["top_logprobs"][1],
            Json({{"token", "bytes:\\xac"}, {"logprob", -3.0}, {"bytes", {0xac}}}));
}

TEST(ResultJson, OffsetsBesideSpecialTokens) {
  RequestResult made = result(Endpoint::kCompletions);
  ChoiceResult& choice = made.choices[0];
  choice.text = "He\xe2\x82\xac";
  choice.token_ids = {4, 1, 4, 2, 3};  // with ignore_eos
  choice.logprobs = {{4, -1.0f}, {1, -1.0f}, {4, -1.0f}, {2, -1.0f}, {3, -1.0f}};
  choice.alternatives.assign(5, {});
  ResultFormat with_special = format();
  with_special.is_special = [](int token) { return token == 4; };
  const Json line = Json::parse(result_line(made, with_special, 1));
  EXPECT_EQ(line["response"]["body"]["choices"][0]["logprobs"]["text_offset"],
            Json({0, 0, 2, 2, 2}));
}

TEST(ResultJson, DigestsAreReadBack) {
  for (const uint64_t digest : {uint64_t{0}, uint64_t{0xab}, ~uint64_t{0}}) {
    BadLine error{"a", "c", "m", digest};
    const Json line = Json::parse(error_line(error));
    EXPECT_EQ(digest_of(line["response"]["request_id"].get<std::string>()), digest);
  }
  for (const char* text : {"", "req_", "req_x", "req_1g", "1", "req_11111111111111111"}) {
    EXPECT_FALSE(digest_of(text)) << text;
  }
}

TEST(ResultJson, OnlyCreatedDiffersBetweenRuns) {
  const RequestResult made = result(Endpoint::kCompletions);
  EXPECT_EQ(result_line(made, format(), 5), result_line(made, format(), 5));
  Json one = Json::parse(result_line(made, format(), 5));
  const Json two = Json::parse(result_line(made, format(), 6));
  EXPECT_NE(one, two);
  one["response"]["body"]["created"] = 6;
  EXPECT_EQ(one, two);
}

TEST(ResultJson, WithoutATokenizerAndWithoutAlternatives) {
  RequestResult made = result(Endpoint::kCompletions);
  made.choices[0].alternatives.assign(4, {});
  const Json line = Json::parse(result_line(made, {}, 1));
  const Json& logprobs = line["response"]["body"]["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"][1], "token_id:2");
  EXPECT_TRUE(logprobs["top_logprobs"].is_null());
  made.endpoint = Endpoint::kChatCompletions;
  const Json chat = Json::parse(result_line(made, {}, 1));
  const Json& token = chat["response"]["body"]["choices"][0]["logprobs"]["content"][0];
  EXPECT_TRUE(token["bytes"].is_null());
  EXPECT_EQ(token["top_logprobs"], Json::array());
}

TEST(ResultJson, LogprobsThatDoNotGoWithTheTokens) {
  RequestResult made = result(Endpoint::kCompletions);
  made.choices[0].logprobs.pop_back();
  EXPECT_THROW(result_line(made, {}, 1), std::invalid_argument);
  made = result(Endpoint::kCompletions);
  made.choices[0].alternatives.pop_back();
  EXPECT_THROW(result_line(made, {}, 1), std::invalid_argument);
}

TEST(ResultJson, InvalidUtf8AndLineBreaksStayInOneJsonLine) {
  RequestResult made = result(Endpoint::kCompletions);
  made.choices[0].text = "a\nb\xff";
  const std::string text = result_line(made, format(), 1);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_EQ(Json::parse(text)["response"]["body"]["choices"][0]["text"], "a\nb\xef\xbf\xbd");
}

TEST(ResultJson, Error) {
  const Json line = Json::parse(error_line({"line-3", "invalid_json", "line 3: no"}));
  EXPECT_EQ(line["custom_id"], "line-3");
  EXPECT_EQ(line["response"]["status_code"], 400);
  EXPECT_EQ(line["response"]["body"]["error"], Json({{"message", "line 3: no"},
                                                     {"type", "invalid_request_error"},
                                                     {"code", "invalid_json"}}));
  EXPECT_EQ(line["error"], Json({{"code", "invalid_json"}, {"message", "line 3: no"}}));
}

void expect_same_bits(float value) {
  const std::string text = Json(printable(value)).dump();
  const auto back = static_cast<float>(std::strtod(text.c_str(), nullptr));
  ASSERT_EQ(std::bit_cast<uint32_t>(back), std::bit_cast<uint32_t>(value)) << text;
  const auto direct = std::strtof(text.c_str(), nullptr);
  ASSERT_EQ(std::bit_cast<uint32_t>(direct), std::bit_cast<uint32_t>(value)) << text;
}

TEST(ResultJson, FloatsReadBackToTheSameBits) {
  EXPECT_EQ(Json(printable(-0.1f)).dump(), "-0.1");
  for (const float value :
       {0.0f, -0.0f, 1.0f, -1.0f, 16777216.0f, std::numeric_limits<float>::min(),
        std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min(),
        std::nextafter(1.0f, 2.0f), 8388609.0f, 1e10f, 4.7019774e-38f}) {
    expect_same_bits(value);
    expect_same_bits(-value);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isfinite(value)) expect_same_bits(value);
  }
  EXPECT_EQ(printable(-std::numeric_limits<float>::infinity()), -9999.0);
}

}  // namespace
}  // namespace headrace
