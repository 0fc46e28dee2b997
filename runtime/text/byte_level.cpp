#include "runtime/text/byte_level.h"

#include <cstdint>

#include "runtime/text/utf8.h"

namespace headrace {
namespace {

constexpr int kAlphabetEnd = 256 + 68;  // first character number past the alphabet

bool spelled_as_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int, kAlphabetEnd> byte{};

  Alphabet() {
    byte.fill(-1);
    int next = 256;
    for (int b = 0; b < 256; ++b) {
      const int c = spelled_as_itself(b) ? b : next++;
      character[static_cast<size_t>(b)] = static_cast<char32_t>(c);
      byte[static_cast<size_t>(c)] = b;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

const std::array<char32_t, 256>& byte_level_characters() { return alphabet().character; }

std::optional<std::string> byte_level_decode(std::string_view entry) {
  const auto& byte = alphabet().byte;
  std::string out;
  for (size_t at = 0; at < entry.size();) {
    const char32_t c = next_character(entry, at);
    if (c >= byte.size() || byte[c] < 0) return std::nullopt;
    out.push_back(static_cast<char>(byte[c]));
  }
  return out;
}

std::string byte_level_encode(std::string_view bytes) {
  std::string out;
  for (const char b : bytes) append_utf8(alphabet().character[static_cast<uint8_t>(b)], out);
  return out;
}

}  // namespace headrace
