// Added and special tokens: found in the text before anything else, with the rules of Hugging Face
// `tokenizers`' AddedVocabulary.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/text/split_pattern.h"

namespace headrace {

struct AddedToken {
  int id = 0;
  std::string content;       // plain text, not in the byte-level alphabet
  bool special = false;      // left out of decoded text on request
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the whitespace before it along
  bool rstrip = false;       // takes the whitespace after it along
  bool normalized = false;   // looked for in normalised text (else in the text as it came)
};

// Finds tokens of one set: at each place the longest, scanning from the left, never overlapping.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // Calls `found` with each token's id and `between` with each text between them, in order.
  void scan(std::string_view text, const std::function<void(int)>& found,
            const std::function<void(std::string_view)>& between) const;

 private:
  struct Node {
    std::unordered_map<char, int> next;
    int token = -1;
  };
  struct Match {
    int token;
    size_t length;
  };
  Match longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> starts_{};
};

}  // namespace headrace
