// What the readers (tokenizer_json.cpp, tokenizer_gguf.cpp) make and Tokenizer works from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "runtime/text/added_tokens.h"
#include "runtime/text/bpe.h"
#include "runtime/text/pretokenizer.h"
#include "runtime/text/tokenizer.h"

namespace headrace {

struct Tokenizer::Data {
  // The vocabulary by id, as the file spells it (added tokens plain, all others in the byte-level
  // alphabet, or as SentencePiece does). Ids may have holes: `present` is false there.
  std::vector<std::string> contents;
  std::vector<bool> present;
  std::unordered_map<std::string, int> ids;

  // U+2581 stands for a space, <0xE9> for a byte; merging begins with characters.
  bool sentencepiece = false;
  std::unordered_map<uint64_t, Bpe::Merge> merges;
  bool ignore_merges = false;
  int unknown = -1;
  bool fuse_unknown = false;

  std::vector<AddedToken> added;
  // Of the model's vocabulary, not only an added token.
  bool in_model(int id) const { return !only_added_.contains(id); }
  Pretokenizer pretokenizer;
  std::string pattern;  // for description(): "gpt2", "qwen2", ...

  std::vector<int> prefix;
  std::vector<int> suffix;
  std::string chat_template;
  std::string bos;
  std::string eos;

  // Each checks its arguments and throws a ModelError that starts with `place` (file and field).
  void add_entry(const std::string& content, int64_t id, const std::string& place);
  // Its rank is the number of merges before it.
  void add_merge(const std::string& left, const std::string& right, const std::string& place);
  // "left right"
  void add_merge(const std::string& pair, const std::string& place);
  // SentencePiece's merges: any two entries may become the one that their texts make, that with the
  // highest score first. scores[id] is an entry's; those of `whole` are made of nothing.
  void add_merges_by_score(std::span<const double> scores, const std::vector<bool>& whole,
                           const std::string& place);
  // An added token that the vocabulary may have already, with the same id.
  void add_added(AddedToken token, int64_t id, const std::string& place);
  // Added tokens as they are looked for take no more memory than they may.
  void check_normalized(const std::string& place) const;
  // The id of a token that must exist.
  int require_id(const std::string& content, const std::string& place) const;

 private:
  int next_rank_ = 0;
  size_t added_bytes_ = 0;  // of all contents in `added`
  std::unordered_set<int> only_added_;
};

// `directory` holds tokenizer.json and perhaps tokenizer_config.json and chat_template.jinja. Both
// give null where there is no trace of a tokenizer, and throw ModelError where a part is missing.
std::unique_ptr<Tokenizer::Data> read_tokenizer_directory(const std::filesystem::path& directory);
std::unique_ptr<Tokenizer::Data> read_tokenizer_gguf(const std::string& path);

}  // namespace headrace
