#include "launch/shown.h"

#include <algorithm>
#include <utility>

namespace headrace {

std::string shown(std::string text) {
  std::replace_if(
      text.begin(), text.end(),
      [](char c) { return (c >= 0 && c < ' ' && c != '\n' && c != '\t') || c == 0x7f; }, '?');
  // U+0080 to U+009F, which terminals take for commands, too.
  for (size_t at = 0; (at = text.find('\xc2', at)) != std::string::npos; ++at) {
    const bool is_control = at + 1 < text.size() && static_cast<unsigned char>(text[at + 1]) < 0xa0;
    if (is_control) text.replace(at, 2, "??");
  }
  return text;
}

}  // namespace headrace
