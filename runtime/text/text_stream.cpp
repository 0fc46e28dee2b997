#include "runtime/text/text_stream.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "runtime/text/utf8.h"

namespace headrace {

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop)
    : tokenizer_(tokenizer), stop_(std::move(stop)) {
  for (const std::string& text : stop_) {
    if (text.empty()) throw std::invalid_argument("TextStream: a stop string is empty");
    longest_stop_ = std::max(longest_stop_, text.size());
  }
}

bool TextStream::push(int token) {
  if (stopped_ || tokenizer_.is_special(token)) return stopped_;
  const std::string_view added = tokenizer_.bytes(token);
  // A stop string that is complete now, and was not before, ends within `added`.
  const size_t before = longest_stop_ == 0 ? 0 : longest_stop_ - 1;
  const size_t from = bytes_.size() - std::min(bytes_.size(), before);
  bytes_ += added;
  size_t cut = std::string::npos;
  for (const std::string& text : stop_) cut = std::min(cut, bytes_.find(text, from));
  if (cut == std::string::npos) return false;
  bytes_.resize(cut);
  stopped_ = true;
  return true;
}

std::string TextStream::text() const { return replace_invalid_utf8(bytes_); }

}  // namespace headrace
