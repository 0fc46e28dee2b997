// A pre-tokenizer's regular expression, written for Oniguruma (which Hugging Face `tokenizers`
// uses), compiled with PCRE2 so that it matches the same text.
//
// What is accepted: literals, classes, alternation, groups (?:...) and (?i:...), lookahead, the
// quantifiers ? * + {m,n} with lazy and (except after a brace) possessive forms, . ^ $, \r \n \t,
// escaped punctuation, \s \S \d and \p{...} of L Lu Ll Lt Lm Lo M N Nd P S. Anything that the two
// engines read differently is refused.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace headrace {

class SplitPattern {
 public:
  // `place` (file and field) starts the text of the ModelError thrown if the pattern cannot be
  // used.
  SplitPattern(std::string_view pattern, const std::string& place);
  // The Digits pre-tokenizer: numeric characters one by one, or in runs.
  static SplitPattern digits(bool individual);

  // One word character: \w of Rust's regex crate.
  static SplitPattern word();

  // True if the pattern matches anywhere in `text` (valid UTF-8). Any thread.
  bool finds(std::string_view text) const;

  // Cuts `text` (valid UTF-8) into matches and what lies between them ("Isolated") and appends the
  // parts, none empty, to `parts`; they point into `text`. Any thread.
  void split(std::string_view text, std::vector<std::string_view>& parts) const;

 private:
  struct Code;
  class Matcher;
  explicit SplitPattern(std::shared_ptr<const Code> code);
  std::shared_ptr<const Code> code_;
};

}  // namespace headrace
