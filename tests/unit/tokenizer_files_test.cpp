// Damaged and unsupported tokenizer files: each is a ModelError that names the file and the place.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "runtime/text/tokenizer.h"
#include "tests/unit/model_files.h"
#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

using nlohmann::json;

class TokenizerFiles : public ::testing::Test {
 protected:
  static json good(const char* style = "llama3") {
    return test::read_json(test::text_data(style) / "tokenizer.json");
  }

  std::unique_ptr<Tokenizer> open(const json& tokenizer) const {
    test::write_file(directory_ / "tokenizer.json", tokenizer.dump());
    return Tokenizer::open(directory_.path());
  }

  // Every one of `words` must be in the message, and the file's name.
  void expect_error(const std::vector<std::string>& words) const {
    std::vector<std::string> parts = words;
    parts.push_back(directory_.path());
    test::expect_model_error([&] { Tokenizer::open(directory_.path()); }, parts);
  }
  void expect_error(const json& tokenizer, const std::vector<std::string>& words) const {
    test::write_file(directory_ / "tokenizer.json", tokenizer.dump());
    expect_error(words);
  }

  // `good` with one value replaced.
  static json with(const std::string& pointer, const json& value, const char* style = "llama3") {
    json changed = good(style);
    changed[json::json_pointer(pointer)] = value;
    return changed;
  }
  static json without(const std::string& object, const std::string& key) {
    json changed = good();
    changed[json::json_pointer(object)].erase(key);
    return changed;
  }

  test::TempDir directory_;
};

TEST_F(TokenizerFiles, TheGoodOneOpens) { EXPECT_EQ(open(good())->vocab_size(), 643); }

TEST_F(TokenizerFiles, Missing) {
  EXPECT_EQ(Tokenizer::open(directory_.path()), nullptr);
  test::write_file(directory_ / "vocab.json", "{}");
  expect_error({"tokenizer.json", "missing", "save_pretrained"});
  EXPECT_THROW(Tokenizer::open(directory_ / "nothing"), ModelError);
  test::write_file(directory_ / "file", "neither");
  EXPECT_THROW(Tokenizer::open(directory_ / "file"), ModelError);
}

TEST_F(TokenizerFiles, NotJson) {
  for (const char* text : {"", "{", "nonsense", "\xFF\xFE", "{\"model\": "}) {
    test::write_file(directory_ / "tokenizer.json", text);
    expect_error({"tokenizer.json", "not valid JSON"});
  }
  for (const char* text : {"[]", "1", "null", "\"model\""}) {
    test::write_file(directory_ / "tokenizer.json", text);
    expect_error({"must be an object"});
  }
}

TEST_F(TokenizerFiles, Vocabulary) {
  expect_error(without("/model", "vocab"), {"model.vocab", "missing"});
  expect_error(without("", "model"), {".model", "missing"});
  expect_error(with("/model/vocab", json::array()), {"model.vocab", "must be an object"});
  expect_error(with("/model/vocab/a", "64"), {"vocab[\"a\"]", "must be an integer"});
  expect_error(with("/model/vocab/a", 64.5), {"must be an integer"});
  expect_error(with("/model/vocab/a", -1), {"\"a\"", "id -1", "outside the range"});
  expect_error(with("/model/vocab/a", 1ULL << 63), {"outside the range"});
  expect_error(with("/model/vocab/a", 4194304), {"outside the range"});
  expect_error(with("/model/vocab/a", good()["model"]["vocab"]["b"]),
               {"\"a\"", "\"b\"", "same id"});
  json empty = good();
  empty["model"]["vocab"] = json::object();
  empty["model"]["merges"] = json::array();
  expect_error(empty, {"model.vocab", "empty"});
}

TEST_F(TokenizerFiles, Merges) {
  expect_error(without("/model", "merges"), {"model.merges", "missing"});
  expect_error(with("/model/merges", "a b"), {"model.merges", "must be an array"});
  expect_error(with("/model/merges/3", "zzzz a"),
               {"merges[3]", "\"zzzz\"", "not in the vocabulary"});
  expect_error(with("/model/merges/3", {"a", "zzzz"}), {"merges[3]", "\"zzzz\""});
  expect_error(with("/model/merges/3", "q q"), {"merges[3]", "\"qq\""});
  expect_error(with("/model/merges/3", "ab"), {"merges[3]", "\"ab\""});
  expect_error(with("/model/merges/3", "a b c"), {"merges[3]", "\"a b c\""});
  expect_error(with("/model/merges/3", {"a"}), {"merges[3]", "two parts"});
  expect_error(with("/model/merges/3", {"a", 1}), {"merges[3][1]", "must be a string"});
  expect_error(with("/model/merges/3", 7), {"merges[3]", "must be a string"});
}

TEST_F(TokenizerFiles, UnsupportedModels) {
  expect_error(with("/model/type", "Unigram"), {"model.type", "\"Unigram\"", "supports BPE"});
  expect_error(with("/model/dropout", 0.1), {"dropout"});
  expect_error(with("/model/continuing_subword_prefix", "##"), {"continuing_subword_prefix"});
  expect_error(with("/model/end_of_word_suffix", "</w>"), {"end_of_word_suffix"});
  EXPECT_TRUE(open(with("/model/end_of_word_suffix", "")));
}

TEST_F(TokenizerFiles, UnsupportedParts) {
  expect_error(with("/normalizer", {{"type", "Lowercase"}}), {"normalizer", "Lowercase", "NFC"});
  expect_error(with("/pre_tokenizer", {{"type", "Metaspace"}}),
               {"pre_tokenizer", "Metaspace", "ByteLevel"});
  expect_error(with("/pre_tokenizer", {{"type", "Digits"}}),
               {"pre_tokenizer", "without ByteLevel"});
  expect_error(with("/pre_tokenizer", nullptr), {"pre_tokenizer", "missing"});
  expect_error(with("/pre_tokenizer/pretokenizers/0/behavior", "Removed"),
               {"pretokenizers[0].behavior", "Removed", "Isolated"});
  expect_error(with("/pre_tokenizer/pretokenizers/0/invert", true), {"pretokenizers[0].invert"});
  expect_error(with("/pre_tokenizer/pretokenizers/0/pattern", {{"String", " "}}),
               {"pretokenizers[0].pattern", "Regex"});
  expect_error(with("/pre_tokenizer/pretokenizers/2", {{"type", "Digits"}}),
               {"pretokenizers[2]", "after ByteLevel"});
  expect_error(with("/post_processor", {{"type", "RobertaProcessing"}}),
               {"post_processor", "RobertaProcessing", "TemplateProcessing"});
  expect_error(with("/decoder", {{"type", "WordPiece"}}), {"decoder", "WordPiece", "ByteLevel"});
  expect_error(with("/decoder", nullptr), {"decoder", "missing"});
}

TEST_F(TokenizerFiles, UnsupportedPartsOfSentencepiece) {
  EXPECT_TRUE(open(good("llama2")));
  EXPECT_TRUE(open(with("/normalizer", {{"type", "NFC"}}, "llama2")));
  // A byte-level tokenizer whose model says that it is SentencePiece's.
  expect_error(with("/model/byte_fallback", true), {"pre_tokenizer", "Metaspace"});
  expect_error(with("/normalizer/normalizers/1/pattern", {{"Regex", " "}}, "llama2"),
               {"normalizer.normalizers[1].pattern", "String"});
  expect_error(with("/normalizer/normalizers/1/pattern/String", "", "llama2"), {"empty"});
  expect_error(with("/normalizer/normalizers/0", {{"type", "Lowercase"}}, "llama2"),
               {"Lowercase", "Prepend"});
  expect_error(with("/normalizer/normalizers/0/prepend", 1, "llama2"), {"prepend", "string"});
  expect_error(with("/pre_tokenizer/replacement", "_", "mistral"), {"replacement", "U+2581"});
  expect_error(with("/pre_tokenizer/prepend_scheme", "last", "mistral"),
               {"prepend_scheme", "\"last\"", "never"});
  expect_error(with("/decoder", {{"type", "ByteLevel"}}, "llama2"), {"decoder", "ByteLevel"});
  expect_error(with("/decoder/decoders/0/content", "-", "llama2"), {"decoders[0]", "Replace"});
  expect_error(with("/decoder/decoders/1", {{"type", "WordPiece"}}, "llama2"),
               {"decoders[1]", "WordPiece", "ByteFallback"});
}

TEST_F(TokenizerFiles, NormalizersThatMakeMuchOfLittle) {
  const auto sequence = [](size_t steps, const std::string& from, const std::string& to) {
    json list = json::array();
    for (size_t i = 0; i < steps; ++i) {
      list.push_back({{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}});
    }
    return json{{"type", "Sequence"}, {"normalizers", list}};
  };
  EXPECT_TRUE(open(with("/normalizer", sequence(4, "I", "II"))));
  expect_error(with("/normalizer", sequence(5, "I", "II")), {"normalizer", "so much longer"});
  expect_error(with("/normalizer", sequence(9, "I", "J")), {"normalizer", "so much longer"});
  expect_error(with("/normalizer", sequence(1, "I", std::string(17, 'I'))), {"so much longer"});
  expect_error(with("/normalizer", {{"type", "Prepend"}, {"prepend", std::string(17, ' ')}}),
               {"normalizer", "so much longer"});
  json many = with("/normalizer", sequence(1, "a", std::string(16, 'b')));
  many["added_tokens"].push_back(
      {{"id", 643}, {"content", std::string(300000, 'a')}, {"normalized", true}});
  expect_error(many, {"added tokens, normalised", "4 MiB"});
}

// As in tokenizers: they are looked for in the text, but merging does not begin with them.
TEST_F(TokenizerFiles, AddedTokensAreNoCharacters) {
  json added = good("llama2");
  added["added_tokens"].push_back({{"id", 642}, {"content", "汉"}, {"single_word", true}});
  const auto tokenizer = open(added);
  EXPECT_EQ(tokenizer->encode("a汉b"), open(good("llama2"))->encode("a汉b"));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a汉b"), false), " a汉b");
}

TEST_F(TokenizerFiles, PatternsThatOnigurumaReadsDifferently) {
  const std::string at = "/pre_tokenizer/pretokenizers/0/pattern/Regex";
  for (const char* pattern :
       {"\\w+",         "\\p{L", "\\pL",     "\\p{Greek}", "(?<x>a)", "(?<=a)b",
        "\\p{N}{1,3}+", "a{,3}", "a{",       "[[a]b]",     "[a&&b]",  "[]a]",
        "[a",           "[\\S]", "[\\P{L}]", "[\\s-x]",    "[a-\\s]", "\\",
        "\\1",          "\\h",   "(a",       "*a",         "[z-a]",   "a)"}) {
    expect_error(with(at, pattern), {"pretokenizers[0].pattern.Regex", "regular expression"});
  }
  for (const char* pattern : {"\\s+$", "\\p{Lu}\\p{Ll}*+|\\P{L}", "[^\\s\\p{N}-]+", "\\d{2,}?", "",
                              "(?=a)", "[\\[\\]\\-\\\\]", "x*"}) {
    const auto tokenizer = open(with(at, pattern));
    EXPECT_EQ(tokenizer->decode(tokenizer->encode("Abc 12é[x]xx\n"), false), "Abc 12é[x]xx\n")
        << pattern;
  }
}

TEST_F(TokenizerFiles, APatternThatExplodesIsAnErrorAndNotAHang) {
  const auto tokenizer = open(with("/pre_tokenizer/pretokenizers/0/pattern/Regex", "(?:a+)+[bc]"));
  EXPECT_THROW(tokenizer->encode(std::string(60, 'a') + "!"), ModelError);
}

TEST_F(TokenizerFiles, AddedTokens) {
  expect_error(with("/added_tokens/0/id", 5),
               {"added_tokens[0]", "<|begin_of_text|>", "same id, 5"});
  json known = good();
  known["added_tokens"][0]["content"] = "a";
  expect_error(known, {"added_tokens[0]", "\"a\"", "the vocabulary gives it id"});
  expect_error(with("/added_tokens/0/id", "5"), {"added_tokens[0].id", "must be an integer"});
  expect_error(with("/added_tokens/0/id", -5), {"added_tokens[0]"});
  expect_error(with("/added_tokens/0/special", 1), {"added_tokens[0].special", "true or false"});
  expect_error(without("/added_tokens/0", "content"), {"added_tokens[0].content", "missing"});
  expect_error(with("/added_tokens", 1), {"added_tokens", "must be an array"});
  expect_error(with("/added_tokens/0/content", std::string((4 << 20) + 1, 'x')),
               {"added_tokens[0]", "more than 4 MiB"});
}

TEST_F(TokenizerFiles, PostProcessor) {
  const std::string step = "/post_processor/processors/1";
  expect_error(with(step + "/special_tokens/<|begin_of_text|>/ids", {99999}),
               {"ids[0]", "99999", "not in the vocabulary"});
  expect_error(with(step + "/special_tokens", json::object()), {"special_tokens", "missing"});
  expect_error(with(step + "/single", json::array()), {"single", "one Sequence"});
  expect_error(with(step + "/single/0", {{"Other", 1}}), {"single[0]"});
  json both = good();
  json& single = both[json::json_pointer(step + "/single")];
  single.push_back(single[0]);
  const auto tokenizer = open(both);
  EXPECT_EQ(tokenizer->prefix(), tokenizer->suffix());
  EXPECT_EQ(tokenizer->prefix().size(), 1u);
}

TEST_F(TokenizerFiles, SequencesNestedWithoutEnd) {
  std::string text = good().dump();
  std::string open;
  std::string close;
  for (int i = 0; i < 20000; ++i) {
    open += "{\"type\":\"Sequence\",\"normalizers\":[";
    close += "]}";
  }
  text.insert(text.rfind('}'), ",\"normalizer\":" + open + "{\"type\":\"NFC\"}" + close);
  test::write_file(directory_ / "tokenizer.json", text);
  expect_error({"tokenizer.json", "nested deeper than 64"});
}

TEST_F(TokenizerFiles, AKeyThatStandsTwice) {
  std::string text = good().dump();
  text.insert(text.find("\"vocab\":{") + 9, "\"a\":7,");
  test::write_file(directory_ / "tokenizer.json", text);
  expect_error({"tokenizer.json", "\"a\" stands twice"});
}

TEST_F(TokenizerFiles, WhatIsNoFileIsNotWaitedFor) {
  ASSERT_EQ(::mkfifo((directory_ / "tokenizer.json").c_str(), 0600), 0);
  expect_error({"tokenizer.json", "not a regular file"});
}

TEST_F(TokenizerFiles, EveryValueReplacedIsAnErrorOrATokenizer) {
  const json flat = with("/model/merges", json::array());
  const json values = flat.flatten();
  for (const auto& [pointer, value] : values.items()) {
    if (pointer.starts_with("/model/vocab")) continue;
    for (const json& other : {json(nullptr), json(-7), json("x"), json::array(), json::object()}) {
      json changed = flat;
      changed[json::json_pointer(pointer)] = other;
      try {
        open(changed)->encode("text <|eot_id|>");
      } catch (const ModelError& error) {
        EXPECT_NE(std::string(error.what()).find("tokenizer.json"), std::string::npos) << pointer;
      }
    }
  }
}

TEST_F(TokenizerFiles, Configuration) {
  const auto open_with = [&](const std::string& config) {
    test::write_file(directory_ / "tokenizer_config.json", config);
    return open(good());
  };
  EXPECT_EQ(open_with("{}")->prefix().size(), 1u);
  EXPECT_EQ(open_with("{\"chat_template\":\"one\"}")->chat_template(), "one");
  EXPECT_EQ(open_with("{\"chat_template\":[{\"name\":\"rag\",\"template\":\"r\"},"
                      "{\"name\":\"default\",\"template\":\"two\"}]}")
                ->chat_template(),
            "two");
  // As transformers: saying anything about bos or eos replaces the template of tokenizer.json.
  EXPECT_TRUE(open_with("{\"add_bos_token\":false}")->prefix().empty());
  const auto both = open_with(
      "{\"add_bos_token\":true,\"add_eos_token\":true,\"bos_token\":\"<|end_of_text|>\","
      "\"eos_token\":{\"content\":\"<|eot_id|>\"}}");
  EXPECT_EQ(both->prefix(), std::vector<int>{*both->id("<|end_of_text|>")});
  EXPECT_EQ(both->suffix(), std::vector<int>{*both->id("<|eot_id|>")});
  test::write_file(directory_ / "chat_template.jinja", "three");
  EXPECT_EQ(open_with("{\"chat_template\":\"one\"}")->chat_template(), "three");

  test::write_file(directory_ / "tokenizer_config.json",
                   "{\"add_bos_token\":true,\"bos_token\":\"<none>\"}");
  expect_error({"tokenizer_config.json", "bos_token", "<none>"});
  test::write_file(directory_ / "tokenizer_config.json", "{\"bos_token\":3}");
  expect_error({"tokenizer_config.json", "bos_token", "must be a string"});
  test::write_file(directory_ / "tokenizer_config.json", "[");
  expect_error({"tokenizer_config.json", "not valid JSON"});
}

// Without a token for every byte: the unknown token, or nothing.
TEST_F(TokenizerFiles, BytesOutsideTheVocabulary) {
  json small = good();
  small["model"]["merges"] = json::array();
  small["model"]["ignore_merges"] = false;
  small["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"?", 2}};
  small["added_tokens"] = json::array();
  small["post_processor"] = nullptr;
  EXPECT_EQ(open(small)->encode("axyb"), (std::vector<int>{0, 1}));
  small["model"]["unk_token"] = "?";
  EXPECT_EQ(open(small)->encode("axyb"), (std::vector<int>{0, 2, 2, 1}));
  small["model"]["fuse_unk"] = true;
  EXPECT_EQ(open(small)->encode("axyb"), (std::vector<int>{0, 2, 1}));
}

}  // namespace
}  // namespace headrace
