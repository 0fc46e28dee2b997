#include "runtime/text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "runtime/text/utf8.h"

namespace headrace {
namespace {

struct Range {
  char32_t first;
  char32_t last;
};

// Characters that take part in normalisation in today's Unicode but not in `tokenizers` 0.23, whose
// data is older (combining classes since Unicode 10 are zero there). They are kept as they are and
// nothing is reordered or composed across them, so that ids stay equal whatever version of Unicode
// the installed utf8proc has. Found by comparing its NFC with Unicode's for every character.
constexpr Range kOpaque[] = {
    {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xcf3, 0xcf3},     {0xd3b, 0xd3c},     {0xeba, 0xeba},
    {0xece, 0xece},     {0x1715, 0x1715},   {0x1abf, 0x1add},   {0x1ae0, 0x1aeb},
    {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x105c9, 0x105c9}, {0x105d2, 0x105d2},
    {0x105da, 0x105da}, {0x105e4, 0x105e4}, {0x10d24, 0x10d27}, {0x10d69, 0x10d6d},
    {0x10eab, 0x10eac}, {0x10efa, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85},
    {0x11070, 0x11070}, {0x11241, 0x11241}, {0x1133b, 0x1133b}, {0x11382, 0x11385},
    {0x1138b, 0x1138b}, {0x1138e, 0x1138e}, {0x11390, 0x11391}, {0x113b8, 0x113c0},
    {0x113c2, 0x113c2}, {0x113c5, 0x113c5}, {0x113c7, 0x113ca}, {0x113cc, 0x113d0},
    {0x113d2, 0x113d2}, {0x113e1, 0x113e2}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193d, 0x1193e},
    {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
    {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
    {0x11f00, 0x11f01}, {0x11f03, 0x11f03}, {0x11f34, 0x11f3a}, {0x11f3e, 0x11f42},
    {0x11f5a, 0x11f5a}, {0x13440, 0x13440}, {0x13447, 0x13455}, {0x1611e, 0x1612f},
    {0x16d63, 0x16d63}, {0x16d67, 0x16d6a}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f},
    {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
    {0x1e5ee, 0x1e5ef}, {0x1e6e3, 0x1e6e3}, {0x1e6e6, 0x1e6e6}, {0x1e6ee, 0x1e6ef},
    {0x1e6f5, 0x1e6f5},
};

bool is_opaque(char32_t c) {
  const auto* range = std::upper_bound(std::begin(kOpaque), std::end(kOpaque), c,
                                       [](char32_t v, const Range& r) { return v < r.first; });
  return range != std::begin(kOpaque) && c <= std::prev(range)->last;
}

// utf8proc orders combining marks by insertion, which is quadratic in a long run of them. A stable
// sort of such runs beforehand gives a canonically equivalent text that is already in order.
std::string order_long_runs(std::string_view text) {
  constexpr size_t kLong = 32;
  struct Mark {
    int combining_class;
    char32_t character;
  };
  std::string out;
  std::vector<Mark> run;
  const auto flush = [&] {
    if (run.size() > kLong) {
      std::stable_sort(run.begin(), run.end(), [](const Mark& a, const Mark& b) {
        return a.combining_class < b.combining_class;
      });
    }
    for (const Mark& mark : run) append_utf8(mark.character, out);
    run.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_character(text, at);
    const int combining_class =
        utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
    if (combining_class == 0) flush();
    run.push_back({combining_class, c});
    if (combining_class == 0) flush();
  }
  flush();
  return out;
}

void append_nfc(std::string_view original, std::string& out) {
  if (original.empty()) return;
  const std::string text = order_long_runs(original);
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (length < 0) throw std::bad_alloc();  // the text is valid: the only error left is memory
  out.append(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
}

}  // namespace

std::string nfc(std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; }))
    return std::string(text);
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    if (!is_opaque(next_character(text, at))) continue;
    append_nfc(text.substr(begin, here - begin), out);
    out.append(text, here, at - here);
    begin = at;
  }
  append_nfc(text.substr(begin), out);
  return out;
}

}  // namespace headrace
