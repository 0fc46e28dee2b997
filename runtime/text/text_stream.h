// Turns one sequence's tokens into text as they come, and finds stop strings across token borders.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/tokenizer.h"

namespace headrace {

class TextStream {
 public:
  // `tokenizer` must outlive the stream. Stop strings must not be empty.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop);

  // Adds a token. Returns true if a stop string is now complete; the text then ends before its
  // first occurrence (the earliest in the text; the longest stop string at one place does not
  // matter, since the stop string itself is left out).
  // Special tokens add no text.
  bool push(int token);

  // The whole text so far, invalid UTF-8 replaced by U+FFFD; cut before the stop string if one hit.
  std::string text() const;
  bool stopped() const { return stopped_; }

 private:
  const Tokenizer& tokenizer_;
  std::vector<std::string> stop_;
  std::string bytes_;
  size_t longest_stop_ = 0;
  bool stopped_ = false;
};

}  // namespace headrace
