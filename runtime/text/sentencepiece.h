// How SentencePiece spells vocabularies: U+2581 for a space, <0xE9> for a byte that has no
// character. Source: sentencepiece's sentencepiece_model.proto and model_interface.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace headrace {

inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

// "<0xE9>"
std::string byte_piece(uint8_t byte);
// The byte that such an entry stands for.
std::optional<uint8_t> piece_byte(std::string_view entry);
// The text of any entry.
std::string piece_text(std::string_view entry);

// Calls word(part) with the parts of a text that begin where a space follows something else.
template <typename Word>
void each_word(std::string_view text, Word word) {
  size_t begin = 0;
  for (size_t at = text.find(kSpaceMark); at != text.npos; at = text.find(kSpaceMark, at + 1)) {
    const bool follows_space = text.substr(0, at).ends_with(kSpaceMark);
    if (at == begin || follows_space) continue;
    word(text.substr(begin, at - begin));
    begin = at;
  }
  if (begin < text.size()) word(text.substr(begin));
}

}  // namespace headrace
