// Tokenizer against ids that Hugging Face tokenizers gave (tests/make_text_goldens.py).
#include "runtime/text/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <set>
#include <thread>

#include "runtime/text/utf8.h"
#include "tests/unit/model_files.h"
#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

using nlohmann::json;
using test::file_from;
using test::read_json;
using test::text_data;

const std::vector<std::string> kStyles = {"gpt2",   "opt",    "llama3",  "qwen2",
                                          "smollm", "llama2", "mistral", "metaspace"};
constexpr const char* kSmol = "SmolLM2-135M-Instruct.Q4_1.gguf";
constexpr const char* kQwen = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

std::unique_ptr<Tokenizer> open_style(const std::string& style) {
  return Tokenizer::open(text_data(style).string());
}

std::string repeated(const json& item) {
  std::string text;
  for (int i = 0; i < item["times"].get<int>(); ++i) text += item["unit"].get<std::string>();
  return text + item["tail"].get<std::string>();
}

std::string fnv(const std::vector<int>& ids) {
  uint64_t value = 0xCBF29CE484222325;
  for (const int id : ids) {
    for (int byte = 0; byte < 4; ++byte) {
      value = (value ^ ((static_cast<uint32_t>(id) >> (8 * byte)) & 0xFF)) * 0x100000001B3;
    }
  }
  char text[17];
  std::snprintf(text, sizeof(text), "%016lx", static_cast<unsigned long>(value));
  return text;
}

void expect_edge_cases(const Tokenizer& tokenizer, const std::string& name) {
  const json cases = read_json(text_data("edge_cases.json"));
  const json ids = read_json(text_data("edge_ids.json")).at(name);
  const json& texts = cases["texts"];
  const json& long_ones = cases["long"];
  ASSERT_EQ(ids.size(), texts.size() + long_ones.size());
  ASSERT_GT(texts.size(), 450u);
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(tokenizer.encode(texts[i].get<std::string>()), ids[i].get<std::vector<int>>())
        << name << " case " << i << ": " << texts[i].dump(-1, ' ', true);
  }
  for (size_t i = 0; i < long_ones.size(); ++i) {
    const std::vector<int> got = tokenizer.encode(repeated(long_ones[i]));
    const json& want = ids[texts.size() + i];
    EXPECT_EQ(got.size(), want["count"].get<size_t>()) << name << long_ones[i].dump(-1, ' ', true);
    EXPECT_EQ(fnv(got), want["fnv"].get<std::string>()) << name << long_ones[i].dump(-1, ' ', true);
  }
}

TEST(Tokenizer, EdgeCasesOfEveryStyle) {
  for (const std::string& style : kStyles) expect_edge_cases(*open_style(style), style);
}

TEST(Tokenizer, DecodesAnyIdsAsTokenizersDoes) {
  const json goldens = read_json(text_data("decode.json"));
  for (const std::string& style : kStyles) {
    if (style == "metaspace") continue;  // its decoder drops all marks of the first token
    const auto tokenizer = open_style(style);
    // What is decoded continues a text: the space before it stays.
    const bool drops_space = style == "llama2" || style == "mistral";
    const auto decoded = [&](const std::vector<int>& ids, bool skip_special) {
      const std::string text = tokenizer->decode(ids, skip_special);
      return drops_space && text.starts_with(' ') ? text.substr(1) : text;
    };
    for (const json& item : goldens.at(style)) {
      const auto ids = item["ids"].get<std::vector<int>>();
      EXPECT_EQ(decoded(ids, false), item["all"].get<std::string>()) << style << item;
      EXPECT_EQ(decoded(ids, true), item["no_special"].get<std::string>()) << style << item;
    }
  }
}

TEST(Tokenizer, DecodingGivesTheTextBack) {
  const json cases = read_json(text_data("edge_cases.json"));
  for (const std::string style : {"gpt2", "llama3", "smollm"}) {
    const auto tokenizer = open_style(style);
    for (const json& item : cases["texts"]) {
      const auto text = item.get<std::string>();
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text), false), text) << style;
    }
  }
  // Characters without a token go byte by byte.
  const std::string text = "  wheel\n \xf0\x9f\x99\x82 \xe6\xb0\xb4\xe8\xbb\x8a\t\0x ";
  for (const std::string style : {"llama2", "mistral", "metaspace"}) {
    const auto tokenizer = open_style(style);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text), false),
              (style == "llama2" ? " " : "") + text);
  }
}

TEST(Tokenizer, Facts) {
  const auto llama = open_style("llama3");
  EXPECT_EQ(llama->prefix(), std::vector<int>{*llama->id("<|begin_of_text|>")});
  EXPECT_TRUE(llama->suffix().empty());
  EXPECT_EQ(llama->description(), "byte-level BPE, pattern llama3, 643 tokens, 3 added");
  EXPECT_EQ(llama->eos_token(), "<|eot_id|>");
  EXPECT_TRUE(llama->is_special(*llama->id("<|eot_id|>")));
  EXPECT_FALSE(llama->is_special(0));
  EXPECT_EQ(llama->vocab_size(), 643);
  EXPECT_EQ(llama->id("no such token"), std::nullopt);

  const auto opt = open_style("opt");
  EXPECT_EQ(opt->prefix(), std::vector<int>{*opt->id("</s>")});
  EXPECT_EQ(opt->bos_token(), "</s>");  // an object in tokenizer_config.json
  EXPECT_FALSE(opt->is_special(*opt->id("<keep>")));

  const auto qwen = open_style("qwen2");
  EXPECT_EQ(qwen->description(), "byte-level BPE, pattern qwen2, NFC, 647 tokens, 7 added");
  EXPECT_TRUE(qwen->prefix().empty());
  EXPECT_EQ(qwen->bos_token(), "");
  EXPECT_EQ(qwen->bytes(-1), "");
  EXPECT_EQ(qwen->bytes(100000), "");
  EXPECT_FALSE(qwen->is_special(100000));
  EXPECT_EQ(qwen->bytes(*qwen->id("Ġw")), " w");
  EXPECT_EQ(Tokenizer::open("synthetic:opt-125m"), nullptr);

  const auto llama2 = open_style("llama2");
  EXPECT_EQ(llama2->prefix(), std::vector<int>{1});
  EXPECT_EQ(llama2->description(), "SentencePiece BPE, 642 tokens, 5 added");
  EXPECT_EQ(llama2->bytes(*llama2->id("\u2581the")), " the");
  EXPECT_EQ(llama2->bytes(*llama2->id("<0xE6>")), "\xe6");
  EXPECT_EQ(llama2->bytes(2), "</s>");
  EXPECT_TRUE(llama2->is_special(0));
  EXPECT_FALSE(llama2->is_special(*llama2->id("<0xE6>")));
}

TEST(Tokenizer, FingerprintsTellTokenizersApart) {
  const auto fingerprint = [](const nlohmann::json& file) {
    const test::TempDir folder;
    test::write_file(folder / "tokenizer.json", file.dump());
    return Tokenizer::open(folder.path())->fingerprint();
  };
  const nlohmann::json file = test::read_json(text_data("qwen2") / "tokenizer.json");
  const std::string one = fingerprint(file);
  EXPECT_EQ(one.size(), 16u);
  EXPECT_EQ(one, fingerprint(file));
  std::set<std::string> seen = {one};
  const auto expect_another = [&](const char* what, const auto& change) {
    nlohmann::json other = file;
    change(other);
    EXPECT_TRUE(seen.insert(fingerprint(other)).second) << what;
  };
  expect_another("order of merges", [](nlohmann::json& f) {
    std::swap(f["model"]["merges"][0], f["model"]["merges"][1]);
  });
  expect_another("a merge less", [](nlohmann::json& f) {
    f["model"]["merges"].erase(f["model"]["merges"].size() - 1);
  });
  expect_another("special", [](nlohmann::json& f) { f["added_tokens"][0]["special"] = false; });
  expect_another("the pattern", [](nlohmann::json& f) {
    f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+|\\s+";
  });
  expect_another("normalisation", [](nlohmann::json& f) { f["normalizer"] = nullptr; });
  expect_another("what is replaced", [](nlohmann::json& f) {
    f["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "Z"}}}, {"content", "Y"}};
  });
  for (const char* style : {"llama2", "mistral", "metaspace"}) {
    EXPECT_TRUE(seen.insert(open_style(style)->fingerprint()).second) << style;
  }
}

TEST(Tokenizer, RefusesInvalidUtf8) {
  const auto tokenizer = open_style("gpt2");
  EXPECT_THROW(tokenizer->encode("a\xFF"), std::invalid_argument);
  EXPECT_THROW(tokenizer->encode("\xC3"), std::invalid_argument);
  EXPECT_THROW(tokenizer->encode("\xED\xA0\x80"), std::invalid_argument);  // a surrogate
}

// A megabyte of one kind of character, where a quadratic step would take hours.
TEST(Tokenizer, LongRunsTakeLinearTime) {
  const std::vector<std::string> units = {"a",      " ",       "\n",           "7",    "!", "水",
                                          "\u00a0", "e\u0301", "\u0301\u0323", "wheel"};
  for (const std::string& style : kStyles) {
    const auto tokenizer = open_style(style);
    for (const std::string& unit : units) {
      std::string text;
      while (text.size() < 1'000'000) text += unit;
      text += "x";
      const auto begin = std::chrono::steady_clock::now();
      const std::vector<int> ids = tokenizer->encode(text);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      EXPECT_LT(taken.count(), 60.0) << style << " " << unit;
      if (style == "gpt2" || style == "llama3" || style == "smollm") {
        EXPECT_TRUE(tokenizer->decode(ids, false) == text) << unit;
      }
    }
  }
}

TEST(Tokenizer, ThreadsAgree) {
  const auto tokenizer = open_style("qwen2");
  const json texts = read_json(text_data("edge_cases.json"))["texts"];
  const json ids = read_json(text_data("edge_ids.json"))["qwen2"];
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t round = 0; round < 3; ++round) {
        for (size_t i = t; i < texts.size(); ++i) {
          if (tokenizer->encode(texts[i].get<std::string>()) != ids[i].get<std::vector<int>>()) {
            ++wrong[t];
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

// Real models -----------------------------------------------------------------------------------

void expect_real_model(const char* name, const char* golden) {
  const std::string model = file_from("HEADRACE_MODELS", name);
  if (model.empty()) GTEST_SKIP() << "HEADRACE_MODELS has no " << name;
  const auto tokenizer = Tokenizer::open(model);
  expect_edge_cases(*tokenizer, name);
  EXPECT_TRUE(tokenizer->prefix().empty());
  EXPECT_EQ(tokenizer->eos_token(), "<|im_end|>");
  EXPECT_TRUE(tokenizer->is_special(*tokenizer->id("<|im_end|>")));
  EXPECT_NE(tokenizer->chat_template().find("<|im_start|>"), std::string::npos);

  const std::string file = file_from("HEADRACE_SHARED", std::string("golden/") + golden);
  if (file.empty()) GTEST_SKIP() << "HEADRACE_SHARED has no golden/" << golden;
  const json prompts = read_json(file)["prompts"];
  ASSERT_FALSE(prompts.empty());
  for (const json& prompt : prompts) {
    const auto text = prompt["prompt"].get<std::string>();
    const std::vector<int> ids = tokenizer->encode(text);
    EXPECT_EQ(ids, prompt["prompt_ids"].get<std::vector<int>>()) << prompt["name"];
    EXPECT_EQ(tokenizer->decode(ids, false), text);
  }
}

TEST(Tokenizer, SmolLm2FromGguf) { expect_real_model(kSmol, "smol.json"); }
TEST(Tokenizer, QwenFromGguf) { expect_real_model(kQwen, "qwen.json"); }

TEST(Tokenizer, UnusedRowsOfGgufAreNoTokens) {
  const std::string model = file_from("HEADRACE_MODELS", kQwen);
  if (model.empty()) GTEST_SKIP() << "HEADRACE_MODELS has no " << kQwen;
  const auto tokenizer = Tokenizer::open(model);
  EXPECT_EQ(tokenizer->description(), "byte-level BPE, pattern qwen2, 151665 tokens, 22 added");
  EXPECT_EQ(tokenizer->vocab_size(), 151665);
  EXPECT_EQ(tokenizer->bytes(151700), "");
  EXPECT_FALSE(tokenizer->is_special(*tokenizer->id("<tool_call>")));  // user-defined
}

}  // namespace
}  // namespace headrace
