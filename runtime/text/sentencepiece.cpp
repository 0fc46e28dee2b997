#include "runtime/text/sentencepiece.h"

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
  std::string text;
  for (size_t at = 0; at < entry.size();) {
    const bool is_mark = entry.substr(at).starts_with(kSpaceMark);
    text += is_mark ? ' ' : entry[at];
    at += is_mark ? kSpaceMark.size() : 1;
  }
  return text;
}

}  // namespace headrace
