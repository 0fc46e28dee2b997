// Rewrites an Oniguruma pattern for PCRE2; see split_pattern.h for what is accepted.
#pragma once

#include <string>
#include <string_view>

namespace headrace {

// Throws ModelError, starting with `place` and naming the position in the pattern.
std::string translate_onig_pattern(std::string_view pattern, const std::string& place);

// A PCRE2 class: every character that is numeric (Unicode N) for `tokenizers`.
std::string numeric_class();
// Every word character: Alphabetic, marks, decimal digits, connectors, join controls.
std::string word_class();

}  // namespace headrace
