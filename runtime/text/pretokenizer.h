// Cuts text into the pieces that are merged one by one: the normalizer and pre_tokenizer of a
// byte-level BPE tokenizer.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/split_pattern.h"

namespace headrace {

// GPT-2's pattern, which the ByteLevel pre-tokenizer uses by itself; Qwen2's and Llama-3's.
extern const std::string_view kGpt2Pattern;
extern const std::string_view kQwen2Pattern;
extern const std::string_view kLlama3Pattern;

struct Pretokenizer {
  bool nfc = false;
  bool add_prefix_space = false;     // before every piece that the splits below leave
  std::vector<SplitPattern> splits;  // one after the other, each on the pieces of the one before
  std::vector<SplitPattern> last;    // GPT-2's pattern, after the prefix space, or nothing

  std::string normalize(std::string_view text) const;
  // Calls `piece` with each piece of normalised text, in order. The view lives until it returns.
  void run(std::string_view text, const std::function<void(std::string_view)>& piece) const;
};

}  // namespace headrace
