#include "runtime/text/utf8.h"

#include <gtest/gtest.h>

namespace headrace {
namespace {

#define REPLACED "\xEF\xBF\xBD"

TEST(Utf8, TellsValidFromInvalid) {
  for (const char* text :
       {"", "abc", "é水🙂", "\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF",
        "\xEE\x80\x80", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(is_valid_utf8(text)) << text;
    EXPECT_EQ(replace_invalid_utf8(text), text);
  }
  EXPECT_TRUE(is_valid_utf8(std::string_view("a\0b", 3)));
  for (const char* text :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC3", "\xE0\x9F\xBF", "\xE6\xB0", "\xED\xA0\x80",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFE", "\xFF", "a\xC3z"}) {
    EXPECT_FALSE(is_valid_utf8(text));
    EXPECT_TRUE(is_valid_utf8(replace_invalid_utf8(text)));
  }
}

// Expected values from Python's bytes.decode("utf-8", "replace").
TEST(Utf8, ReplacesEachMaximalSubpart) {
  EXPECT_EQ(replace_invalid_utf8("a\xF1\x80\x80\xE1\x80\xC2z\x80\x80\xBFq"),
            "a" REPLACED REPLACED REPLACED "z" REPLACED REPLACED REPLACED "q");
  EXPECT_EQ(replace_invalid_utf8("\xE0\x80\x80"), REPLACED REPLACED REPLACED);
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), REPLACED REPLACED REPLACED);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x99"), REPLACED);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x99x"), REPLACED "x");
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), REPLACED REPLACED REPLACED REPLACED);
  EXPECT_EQ(replace_invalid_utf8("\xC3\xC3\xA9"), REPLACED "é");
}

TEST(Utf8, EveryCharacterThereAndBack) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(c, text);
    size_t at = 0;
    ASSERT_TRUE(is_valid_utf8(text)) << static_cast<uint32_t>(c);
    ASSERT_EQ(next_character(text, at), c);
    ASSERT_EQ(at, text.size());
  }
}

}  // namespace
}  // namespace headrace
