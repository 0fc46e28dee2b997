// A GGUF file with a tokenizer only, as a converter makes it from one of tests/data/text.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/unit/gguf_bytes.h"
#include "tests/unit/text_test_util.h"

namespace headrace::test {

// Value types of metadata.
inline constexpr uint32_t kUint32 = 4;
inline constexpr uint32_t kInt32 = 5;
inline constexpr uint32_t kFloat32 = 6;
inline constexpr uint32_t kBool = 7;
inline constexpr uint32_t kString = 8;

// Metadata entries by key, so that a test can change or drop one.
using Entries = std::map<std::string, std::string>;

inline void write_gguf(const std::string& path, const Entries& entries) {
  std::string bytes = "GGUF" + le<uint32_t>(3) + le<uint64_t>(0) + le<uint64_t>(entries.size());
  for (const auto& [key, entry] : entries) bytes += entry;
  bytes.resize((bytes.size() + 31) / 32 * 32);
  write_file(path, bytes);
}

inline void set_string(Entries& entries, const std::string& key, const std::string& value) {
  entries[key] = entry(key, kString, text(value));
}
inline void set_uint(Entries& entries, const std::string& key, uint32_t value) {
  entries[key] = entry(key, kUint32, le(value));
}
inline void set_strings(Entries& entries, const std::string& key,
                        const std::vector<std::string>& values) {
  std::string items;
  for (const std::string& value : values) items += text(value);
  entries[key] = array(key, kString, values.size(), items);
}
inline void set_ints(Entries& entries, const std::string& key, const std::vector<int32_t>& values) {
  std::string items;
  for (const int32_t value : values) items += le(value);
  entries[key] = array(key, kInt32, values.size(), items);
}

inline void set_floats(Entries& entries, const std::string& key, const std::vector<float>& values) {
  std::string items;
  for (const float value : values) items += le(value);
  entries[key] = array(key, kFloat32, values.size(), items);
}

// What one makes of a model of sentencepiece: tests/data/text/llama2/pieces.json.
inline Entries converted_pieces() {
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (const nlohmann::json& piece : read_json(text_data("llama2") / "pieces.json")) {
    tokens.push_back(piece[0].get<std::string>());
    scores.push_back(piece[1].get<float>());
    types.push_back(piece[2].get<int32_t>());
  }
  Entries entries;
  set_string(entries, "tokenizer.ggml.model", "llama");
  set_string(entries, "tokenizer.ggml.pre", "default");
  set_strings(entries, "tokenizer.ggml.tokens", tokens);
  set_floats(entries, "tokenizer.ggml.scores", scores);
  set_ints(entries, "tokenizer.ggml.token_type", types);
  set_uint(entries, "tokenizer.ggml.unknown_token_id", 0);
  set_uint(entries, "tokenizer.ggml.bos_token_id", 1);
  set_uint(entries, "tokenizer.ggml.eos_token_id", 2);
  return entries;
}

// What a converter makes of tests/data/text/<style>/tokenizer.json.
inline Entries converted(const std::string& style, const std::string& pre) {
  const nlohmann::json source = read_json(text_data(style) / "tokenizer.json");
  std::map<int, std::string> by_id;
  for (const auto& [content, id] : source["model"]["vocab"].items()) by_id[id.get<int>()] = content;
  std::map<int, int32_t> type_of;
  for (const nlohmann::json& token : source["added_tokens"]) {
    by_id[token["id"].get<int>()] = token["content"].get<std::string>();
    type_of[token["id"].get<int>()] = token["special"].get<bool>() ? 3 : 4;
  }
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  for (const auto& [id, content] : by_id) {
    if (static_cast<size_t>(id) != tokens.size()) throw std::runtime_error("ids have holes");
    tokens.push_back(content);
    types.push_back(type_of.contains(id) ? type_of[id] : 1);
  }
  for (int i = 0; i < 5; ++i) {  // rows that only fill the embedding
    tokens.push_back("[PAD" + std::to_string(i) + "]");
    types.push_back(5);
  }
  std::vector<std::string> merges;
  for (const nlohmann::json& merge : source["model"]["merges"]) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  Entries entries;
  set_string(entries, "tokenizer.ggml.model", "gpt2");
  set_string(entries, "tokenizer.ggml.pre", pre);
  set_strings(entries, "tokenizer.ggml.tokens", tokens);
  set_ints(entries, "tokenizer.ggml.token_type", types);
  set_strings(entries, "tokenizer.ggml.merges", merges);
  set_uint(entries, "tokenizer.ggml.bos_token_id", 640);
  set_uint(entries, "tokenizer.ggml.eos_token_id", 640);
  return entries;
}

}  // namespace headrace::test
