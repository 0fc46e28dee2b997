// UTF-8 as the Unicode standard defines it (table 3-7): no surrogates, no overlong forms, at most
// U+10FFFF. All functions are pure and safe from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace headrace {

bool is_valid_utf8(std::string_view text);

// Each maximal subpart of an ill-formed sequence becomes one U+FFFD, as in Python's
// bytes.decode(errors="replace") and Rust's String::from_utf8_lossy.
std::string replace_invalid_utf8(std::string_view text);

// The character at `at` (< text.size()), which must begin a well-formed sequence; advances `at`
// past it.
char32_t next_character(std::string_view text, size_t& at);

// With every `from`, which is not empty, made `to`.
std::string replaced(std::string_view text, std::string_view from, std::string_view to);

void append_utf8(char32_t character, std::string& out);

}  // namespace headrace
