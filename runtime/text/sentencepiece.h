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

}  // namespace headrace
