#include "runtime/text/sentencepiece.h"

#include "runtime/text/utf8.h"

namespace headrace {
namespace {

constexpr std::string_view kDigits = "0123456789ABCDEF";

}  // namespace

std::string byte_piece(uint8_t byte) {
  return {'<', '0', 'x', kDigits[byte / 16], kDigits[byte % 16], '>'};
}

std::optional<uint8_t> piece_byte(std::string_view entry) {
  if (entry.size() != 6 || !entry.starts_with("<0x") || entry[5] != '>') return std::nullopt;
  const size_t high = kDigits.find(entry[3]), low = kDigits.find(entry[4]);
  if (high == kDigits.npos || low == kDigits.npos) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

std::string piece_text(std::string_view entry) {
  if (const auto byte = piece_byte(entry)) return std::string(1, static_cast<char>(*byte));
  return replaced(entry, kSpaceMark, " ");
}

}  // namespace headrace
