// Unicode normal form C with the data of the Rust crate that Hugging Face `tokenizers` uses.
#pragma once

#include <string>
#include <string_view>

namespace headrace {

// NFC of valid UTF-8. Any thread.
std::string nfc(std::string_view text);

}  // namespace headrace
