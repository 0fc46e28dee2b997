// The tokenizer in GGUF metadata: equal to the tokenizer.json it was made from, and its errors.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/text/tokenizer.h"
#include "tests/unit/gguf_tokenizer.h"
#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

using nlohmann::json;
using test::converted;
using test::Entries;
using test::kBool;
using test::set_ints;
using test::set_string;
using test::set_strings;
using test::set_uint;
using test::write_gguf;

class TokenizerGguf : public ::testing::Test {
 protected:
  std::unique_ptr<Tokenizer> open(const Entries& entries) const {
    write_gguf(file_, entries);
    return Tokenizer::open(file_);
  }
  void expect_error(const Entries& entries, std::vector<std::string> parts) const {
    parts.push_back(file_);
    test::expect_model_error([&] { open(entries); }, parts);
  }

  test::TempDir directory_;
  std::string file_ = directory_ / "model.gguf";
};

TEST_F(TokenizerGguf, GivesTheIdsOfTheTokenizerJson) {
  const json texts = test::read_json(test::text_data("edge_cases.json"))["texts"];
  const std::vector<std::pair<std::string, std::string>> styles = {
      {"gpt2", "gpt-2"},       {"gpt2", "default"},  {"smollm", "smollm"},
      {"llama3", "llama-bpe"}, {"llama3", "llama3"}, {"llama3", "llama-v3"}};
  for (const auto& [style, pre] : styles) {
    const auto tokenizer = open(converted(style, pre));
    const auto original = Tokenizer::open(test::text_data(style).string());
    EXPECT_EQ(tokenizer->description(), original->description());
    for (const json& item : texts) {
      const auto text = item.get<std::string>();
      EXPECT_EQ(tokenizer->encode(text), original->encode(text)) << pre << item;
    }
  }
}

// A GGUF file asks for no NFC; without marks to compose the ids are the same.
TEST_F(TokenizerGguf, QwenHasNoNfc) {
  const auto tokenizer = open(converted("qwen2", "qwen2"));
  const auto original = Tokenizer::open(test::text_data("qwen2").string());
  const std::string text = "It's 1234 wheels;\r\n\n  déjà vu <tool_call> THEY'LL";
  EXPECT_EQ(tokenizer->encode(text), original->encode(text));
  EXPECT_NE(tokenizer->encode("cafe\u0301"), original->encode("cafe\u0301"));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("cafe\u0301"), false), "cafe\u0301");
}

TEST_F(TokenizerGguf, ScoredPiecesGiveTheIdsOfSentencepiece) {
  const auto tokenizer = open(test::converted_pieces());
  EXPECT_EQ(tokenizer->description(), "SentencePiece BPE, 640 tokens, 3 added");
  const json texts = test::read_json(test::text_data("edge_cases.json"))["texts"];
  const json ids = test::read_json(test::text_data("edge_ids.json"))["sentencepiece"];
  int compared = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (ids[i].is_null()) continue;  // special tokens, which sentencepiece takes for text
    EXPECT_EQ(tokenizer->encode(texts[i].get<std::string>()), ids[i].get<std::vector<int>>())
        << texts[i];
    ++compared;
  }
  EXPECT_GT(compared, 450);
}

TEST_F(TokenizerGguf, ScoredPiecesAndWhatStandsAroundThem) {
  using test::set_floats;
  Entries entries = test::converted_pieces();
  const auto tokenizer = open(entries);
  EXPECT_EQ(tokenizer->prefix(), std::vector<int>{1});  // without being asked for
  EXPECT_TRUE(tokenizer->suffix().empty());
  EXPECT_EQ(tokenizer->eos_token(), "</s>");
  EXPECT_TRUE(tokenizer->is_special(0));
  // A space before each text between special tokens.
  const std::vector<int> the = tokenizer->encode("the");
  EXPECT_EQ(the, (std::vector<int>{*tokenizer->id("\u2581the")}));
  EXPECT_EQ(tokenizer->encode("</s>the"), (std::vector<int>{2, the[0]}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(" the"), false), "  the");
  const std::string prefix = "tokenizer.ggml.add_space_prefix";
  entries[prefix] = test::entry(prefix, kBool, std::string(1, '\0'));
  EXPECT_EQ(open(entries)->encode(" the"), the);

  const Entries good = test::converted_pieces();
  const auto changed = [&](const auto& change) {
    Entries other = good;
    change(other);
    return other;
  };
  for (const char* key : {"tokens", "token_type", "scores"}) {
    const std::string full = std::string("tokenizer.ggml.") + key;
    expect_error(changed([&](Entries& e) { e.erase(full); }), {full, "missing"});
  }
  expect_error(changed([](Entries& e) {
                 set_floats(e, "tokenizer.ggml.scores", {0.0f, 1.0f});
               }),
               {"tokenizer.ggml.scores", "2 entries", "640 tokens"});
  expect_error(changed([](Entries& e) {
                 set_strings(e, "tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "a"});
                 set_ints(e, "tokenizer.ggml.token_type", {2, 3, 3, 1});
                 set_floats(e, "tokenizer.ggml.scores", {0, 0, 0, std::nanf("")});
               }),
               {"score of token 3", "not a number"});
  expect_error(
      changed([](Entries& e) {
        set_strings(e, "tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", std::string(129, 'a')});
        set_ints(e, "tokenizer.ggml.token_type", {2, 3, 3, 1});
        set_floats(e, "tokenizer.ggml.scores", {0, 0, 0, 0});
      }),
      {"token 3 is longer than 128 bytes"});
  // Each run of one letter can be made of any two.
  expect_error(changed([](Entries& e) {
                 std::vector<std::string> runs;
                 for (size_t length = 0; length < 100; ++length) runs.emplace_back(length, 'a');
                 set_strings(e, "tokenizer.ggml.tokens", runs);
                 set_ints(e, "tokenizer.ggml.token_type", std::vector<int32_t>(100, 1));
                 set_floats(e, "tokenizer.ggml.scores", std::vector<float>(100, 0.0f));
               }),
               {"too many ways"});
}

TEST_F(TokenizerGguf, BosAndEos) {
  Entries entries = converted("llama3", "llama-bpe");
  EXPECT_EQ(open(entries)->prefix(), std::vector<int>{640});  // the default of this pre-tokenizer
  EXPECT_EQ(open(entries)->bos_token(), "<|begin_of_text|>");
  const std::string add_bos = "tokenizer.ggml.add_bos_token";
  entries[add_bos] = test::entry(add_bos, kBool, std::string(1, '\0'));
  EXPECT_TRUE(open(entries)->prefix().empty());
  entries = converted("gpt2", "gpt-2");
  EXPECT_TRUE(open(entries)->prefix().empty());
  entries[add_bos] = test::entry(add_bos, kBool, "\1");
  EXPECT_EQ(open(entries)->prefix(), std::vector<int>{640});
  const std::string add_eos = "tokenizer.ggml.add_eos_token";
  entries[add_eos] = test::entry(add_eos, kBool, "\1");
  EXPECT_EQ(open(entries)->suffix(), std::vector<int>{640});
  set_string(entries, "tokenizer.chat_template", "{{ x }}");
  EXPECT_EQ(open(entries)->chat_template(), "{{ x }}");
}

TEST_F(TokenizerGguf, Errors) {
  const Entries good = converted("gpt2", "gpt-2");
  ASSERT_TRUE(open(good));
  const auto changed = [&](const auto& change) {
    Entries entries = good;
    change(entries);
    return entries;
  };
  for (const char* key : {"model", "pre", "tokens", "token_type", "merges"}) {
    const std::string full = std::string("tokenizer.ggml.") + key;
    expect_error(changed([&](Entries& e) { e.erase(full); }), {full, "missing"});
  }
  EXPECT_FALSE(open(changed([](Entries& e) {
    e.erase("tokenizer.ggml.model");
    e.erase("tokenizer.ggml.tokens");
  })));  // none at all
  expect_error(changed([](Entries& e) { set_string(e, "tokenizer.ggml.model", "bert"); }),
               {"tokenizer.ggml.model", "\"bert\"", "supports gpt2", "llama"});
  expect_error(changed([](Entries& e) { set_string(e, "tokenizer.ggml.pre", "tekken"); }),
               {"tokenizer.ggml.pre", "\"tekken\"", "gpt-2, default, qwen2, smollm, llama-bpe"});
  expect_error(changed([](Entries& e) { set_uint(e, "tokenizer.ggml.pre", 1); }),
               {"tokenizer.ggml.pre"});
  expect_error(changed([](Entries& e) {
                 set_ints(e, "tokenizer.ggml.token_type", {1, 1});
               }),
               {"tokenizer.ggml.token_type", "2 entries", "646 tokens"});
  expect_error(changed([](Entries& e) { set_strings(e, "tokenizer.ggml.merges", {"a zzzz"}); }),
               {"tokenizer.ggml.merges[0]", "zzzz"});
  expect_error(changed([](Entries& e) {
                 set_strings(e, "tokenizer.ggml.tokens", {"a", "a"});
                 set_ints(e, "tokenizer.ggml.token_type", {1, 1});
               }),
               {"tokenizer.ggml.tokens", "\"a\"", "twice"});
  expect_error(changed([](Entries& e) {
                 set_strings(e, "tokenizer.ggml.tokens", {"a", "\xFF"});
                 set_ints(e, "tokenizer.ggml.token_type", {1, 1});
                 set_strings(e, "tokenizer.ggml.merges", {});
               }),
               {"tokenizer.ggml.tokens", "UTF-8"});
  for (const uint32_t id : {645u, 1000u, 0xFFFFFFFFu}) {  // an unused row, and none at all
    expect_error(changed([&](Entries& e) { set_uint(e, "tokenizer.ggml.eos_token_id", id); }),
                 {"tokenizer.ggml.eos_token_id", std::to_string(id)});
  }
}

}  // namespace
}  // namespace headrace
