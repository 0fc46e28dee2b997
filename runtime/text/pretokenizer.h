// Cuts text into the pieces that are merged one by one: the normalizer and pre_tokenizer of a BPE
// tokenizer, byte-level or SentencePiece's.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/split_pattern.h"

namespace headrace {

// GPT-2's pattern, which the ByteLevel pre-tokenizer uses by itself; Qwen2's and Llama-3's.
extern const std::string_view kGpt2Pattern;
extern const std::string_view kQwen2Pattern;
extern const std::string_view kLlama3Pattern;

// A step of the normalizer, on each text between added tokens.
struct NormalizerStep {
  enum class Kind { kNfc, kPrepend, kReplace };
  Kind kind = Kind::kNfc;
  std::string from;  // kReplace: this text, wherever it is
  std::string to;    // kReplace, and kPrepend, which leaves empty text alone
};

// SentencePiece's way with spaces as a pre-tokenizer: each becomes a mark, and one may go before
// the text. Source: `tokenizers`, pre_tokenizers/metaspace.rs.
struct Metaspace {
  enum class Prefix { kNever, kFirst, kAlways };
  Prefix prefix = Prefix::kAlways;  // kFirst: only where the whole input begins
  bool splits = true;               // a piece begins at each mark
};

struct Pretokenizer {
  std::vector<NormalizerStep> normalizer;
  std::optional<Metaspace> metaspace;  // in place of all below
  bool add_prefix_space = false;       // before every piece that the splits below leave
  std::vector<SplitPattern> splits;    // one after the other, each on the pieces of the one before
  std::vector<SplitPattern> last;      // GPT-2's pattern, after the prefix space, or nothing

  bool has_nfc() const;
  std::string normalize(std::string_view text) const;
  // Calls `piece` with each piece of normalised text, in order. The view lives until it returns.
  // `is_first`: the input begins with it.
  void run(std::string_view text, bool is_first,
           const std::function<void(std::string_view)>& piece) const;
};

}  // namespace headrace
