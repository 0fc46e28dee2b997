// The alphabet of byte-level BPE: each byte is spelled as one printable character in vocabulary
// files (GPT-2's bytes_to_unicode). Bytes 21..7E, A1..AC, AE..FF are spelled as the character of
// the same number, the other 68 bytes in ascending order as U+0100 and up (a space is U+0120).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace headrace {

// The character that spells each byte.
const std::array<char32_t, 256>& byte_level_characters();

// The bytes that a vocabulary entry (valid UTF-8) spells; nullopt if it has a character outside the
// alphabet.
std::optional<std::string> byte_level_decode(std::string_view entry);

std::string byte_level_encode(std::string_view bytes);

}  // namespace headrace
