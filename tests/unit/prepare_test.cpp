#include "runtime/requests/prepare.h"

#include <gtest/gtest.h>

#include "engine/model/shapes.h"
#include "tests/unit/model_files.h"
#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

using test::text_data;

class Prepare : public testing::Test {
 protected:
  Prepare() { config_.max_positions = 100; }

  Request with_ids(int count, int max_tokens) const {
    Request request = asking(max_tokens);
    request.prompt = std::vector<int>(static_cast<size_t>(count), 5);
    return request;
  }
  static Request with_text(const std::string& text) {
    Request request = asking(5);
    request.prompt = text;
    return request;
  }
  static Request with_messages() {
    Request request = asking(5);
    request.prompt = std::vector<ChatMessage>{{"user", "Hello"}};
    return request;
  }
  static Request asking(int max_tokens) {
    Request request;
    request.custom_id = "a";
    request.max_tokens = max_tokens;
    return request;
  }

  RequestPreparer ids_only(int64_t kv_tokens = 1000) const {
    return {config_, nullptr, std::nullopt, kv_tokens};
  }

  // The prompt's tokens; a refusal is a failure.
  static std::vector<int32_t> tokens(const RequestPreparer& preparer, Request request) {
    auto prepared = preparer.prepare(std::move(request));
    if (const auto* bad = std::get_if<BadLine>(&prepared)) {
      ADD_FAILURE() << bad->message;
      return {};
    }
    return std::get<PreparedRequest>(prepared).prompt;
  }
  // Why it is refused.
  static std::string refusal(const RequestPreparer& preparer, Request request) {
    const auto prepared = preparer.prepare(std::move(request));
    const auto* bad = std::get_if<BadLine>(&prepared);
    if (!bad) return "it was not refused";
    EXPECT_EQ(bad->custom_id, "a");
    EXPECT_EQ(bad->code, "invalid_request");
    return bad->message;
  }
  static void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << text;
    }
  }

  ModelConfig config_ = named_shape("tiny-llama");
};

TEST_F(Prepare, TokenIdsAreTakenAsTheyAre) {
  Request request = with_ids(3, 5);
  request.sampling.seed = 77;
  auto prepared = ids_only().prepare(request);
  ASSERT_TRUE(std::holds_alternative<PreparedRequest>(prepared));
  EXPECT_EQ(std::get<PreparedRequest>(prepared).prompt, (std::vector<int32_t>{5, 5, 5}));
  EXPECT_EQ(std::get<PreparedRequest>(prepared).request.sampling.seed, 77u);
  EXPECT_EQ(std::get<PreparedRequest>(prepared).request.custom_id, "a");
}

TEST_F(Prepare, TokenIdsMustBeInTheVocabulary) {
  Request request = with_ids(1, 5);
  request.prompt = std::vector<int>{0, config_.vocab_size - 1};
  EXPECT_EQ(tokens(ids_only(), request).size(), 2u);
  for (const int id : {config_.vocab_size, -1, 2000000000}) {
    request.prompt = std::vector<int>{1, id};
    EXPECT_EQ(refusal(ids_only(), request), "prompt: token id " + std::to_string(id) +
                                                " is not in the model's vocabulary of 320");
  }
}

TEST_F(Prepare, AnEmptyPromptIsRefused) {
  EXPECT_EQ(refusal(ids_only(), with_ids(0, 5)), "prompt: it is empty");
}

TEST_F(Prepare, TheContextIsALimit) {
  EXPECT_EQ(tokens(ids_only(), with_ids(99, 1)).size(), 99u);
  EXPECT_EQ(tokens(ids_only(), with_ids(40, 60)).size(), 40u);
  expect_parts(refusal(ids_only(), with_ids(100, 1)),
               {"prompt: 100 tokens", "context of 100", "shorten it"});
  expect_parts(refusal(ids_only(), with_ids(40, 61)),
               {"max_tokens: 40 prompt tokens and 61 generated ones", "context of 100",
                "at most 60 can be generated"});
  // No sum of the two may overflow.
  expect_parts(refusal(ids_only(), with_ids(40, 2147483647)), {"at most 60 can be generated"});
}

TEST_F(Prepare, TheKvCacheIsALimit) {
  EXPECT_EQ(tokens(ids_only(48), with_ids(40, 8)).size(), 40u);
  expect_parts(refusal(ids_only(48), with_ids(40, 9)),
               {"need 49 tokens of KV cache", "room for 48", "--host-memory"});
}

TEST_F(Prepare, LogitBiasMustBeInTheVocabulary) {
  Request request = with_ids(3, 5);
  request.sampling.logit_bias = {{0, 1.0f}, {319, 1.0f}};
  EXPECT_EQ(tokens(ids_only(), request).size(), 3u);
  request.sampling.logit_bias = {{0, 1.0f}, {320, 1.0f}};
  EXPECT_EQ(refusal(ids_only(), request),
            "logit_bias: token id 320 is not in the model's vocabulary of 320");
}

TEST_F(Prepare, TextNeedsATokenizer) {
  expect_parts(refusal(ids_only(), with_text("Hello")), {"no tokenizer", "token ids"});
  expect_parts(refusal(ids_only(), with_messages()), {"no tokenizer"});
}

// One such text must not end the batch.
TEST_F(Prepare, ATextThatThePatternCannotCutIsRefused) {
  nlohmann::json file = test::read_json(text_data("qwen2") / "tokenizer.json");
  file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?:x+)+y|[^x]+|x+";
  const test::TempDir folder;
  test::write_file(folder / "tokenizer.json", file.dump());
  const auto tokenizer = Tokenizer::open(folder.path());
  config_.vocab_size = 200000;
  const RequestPreparer preparer(config_, tokenizer.get(), std::nullopt, 1000);
  EXPECT_FALSE(tokens(preparer, with_text("xxxx z")).empty());
  Request request = with_text(std::string(60, 'x') + "z");
  request.digest = 7;
  const auto prepared = preparer.prepare(request);
  const auto* bad = std::get_if<BadLine>(&prepared);
  ASSERT_TRUE(bad);
  EXPECT_EQ(bad->digest, 7u);
  expect_parts(bad->message, {"tokenizer.json", "a text of 61 bytes", "Shorten the text"});
}

TEST_F(Prepare, TextIsEncodedWithThePrefix) {
  config_.vocab_size = 200000;
  for (const char* style : {"gpt2", "llama3", "opt", "qwen2", "smollm"}) {
    const auto tokenizer = Tokenizer::open(text_data(style).string());
    const RequestPreparer preparer(config_, tokenizer.get(), std::nullopt, 1000);
    std::vector<int32_t> expected(tokenizer->prefix().begin(), tokenizer->prefix().end());
    for (const int id : tokenizer->encode("Hello there")) expected.push_back(id);
    EXPECT_EQ(tokens(preparer, with_text("Hello there")), expected) << style;
    if (tokenizer->prefix().empty()) {
      EXPECT_EQ(refusal(preparer, with_text("")), "prompt: it is empty") << style;
    }
  }
}

TEST_F(Prepare, TokensOfTextMustBeInTheVocabulary) {
  const auto tokenizer = Tokenizer::open(text_data("qwen2").string());
  const std::string text = "Hello there";
  const auto ids = tokenizer->encode(text);
  const int largest = *std::max_element(ids.begin(), ids.end());
  for (const int vocabulary : {largest + 1, largest}) {
    config_.vocab_size = vocabulary;
    const RequestPreparer preparer(config_, tokenizer.get(), std::nullopt, 1000);
    if (vocabulary > largest) {
      EXPECT_EQ(tokens(preparer, with_text(text)).size(), ids.size());
    } else {
      expect_parts(refusal(preparer, with_text(text)),
                   {"the tokenizer gives token id " + std::to_string(largest),
                    "vocabulary of " + std::to_string(largest), "do not belong together"});
    }
  }
  const auto chat_template = ChatTemplate::named("chatml", "");
  expect_parts(
      refusal(RequestPreparer(config_, tokenizer.get(), chat_template, 1000), with_messages()),
      {"the tokenizer gives token id"});
}

TEST_F(Prepare, MessagesNeedATemplate) {
  config_.vocab_size = 200000;
  const auto tokenizer = Tokenizer::open(text_data("qwen2").string());
  const RequestPreparer without(config_, tokenizer.get(), std::nullopt, 1000);
  expect_parts(refusal(without, with_messages()),
               {"messages: ", "--chat-template", ChatTemplate::known_names()});
  const auto chat_template = ChatTemplate::named("chatml", "");
  ASSERT_TRUE(chat_template);
  const RequestPreparer with(config_, tokenizer.get(), chat_template, 1000);
  EXPECT_EQ(tokens(with, with_messages()),
            tokenizer->encode(chat_template->render({{"user", "Hello"}})));
}

}  // namespace
}  // namespace headrace
