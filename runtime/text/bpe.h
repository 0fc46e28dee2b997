// Byte-pair merging of one pre-token: the core of a BPE tokenizer, byte-level or SentencePiece's.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace headrace {

class Bpe {
 public:
  struct Merge {
    int rank;    // lower is applied first; among equal ones the leftmost
    int result;  // token id
  };
  struct Tables {
    // Token of each single byte, -1 where the vocabulary has none: such a byte becomes the unknown
    // token, or nothing if there is none.
    std::array<int, 256> byte_ids{};
    // SentencePiece: merging begins with characters. One that is not here becomes its bytes, or the
    // unknown token if not all of those have one.
    bool by_character = false;
    std::unordered_map<char32_t, int> characters;
    std::unordered_map<uint64_t, Merge> merges;  // key(left, right)
    int unknown = -1;
    bool fuse_unknown = false;  // a run of what is unknown is one unknown token
    // ignore_merges (Llama-3): a pre-token that is in the vocabulary as a whole is that token, even
    // if no merges lead to it. Bytes -> id; empty where the model merges always.
    std::unordered_map<std::string, int> whole;
  };
  static uint64_t key(int left, int right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }

  explicit Bpe(Tables tables);
  ~Bpe();

  // Appends the ids of `piece`: raw bytes, or valid UTF-8 where it goes by character. Time n log n
  // in its length. Any thread.
  void encode(std::string_view piece, std::vector<int>& out) const;

 private:
  std::vector<int> first_symbols(std::string_view piece) const;
  void add_unknown(std::vector<int>& ids, bool after_unknown) const;
  std::vector<int> first_characters(std::string_view piece) const;
  std::vector<int> merge(std::string_view piece) const;

  Tables tables_;
  class Cache;
  std::unique_ptr<Cache> cache_;
};

}  // namespace headrace
