#include "runtime/text/text_stream.h"

#include <gtest/gtest.h>

#include <random>

#include "runtime/text/utf8.h"
#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

// The ids of single bytes: text in the most splintered form.
std::vector<int> byte_tokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int> of_byte(256, -1);
  for (int id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.bytes(id).size() == 1) of_byte[static_cast<uint8_t>(tokenizer.bytes(id)[0])] = id;
  }
  std::vector<int> ids;
  for (const char c : text) ids.push_back(of_byte[static_cast<uint8_t>(c)]);
  return ids;
}

class TextStreamTest : public ::testing::Test {
 protected:
  // Pushes until the stop string is complete; how many tokens that took.
  size_t push_all(TextStream& stream, const std::vector<int>& ids) const {
    for (size_t i = 0; i < ids.size(); ++i) {
      if (stream.push(ids[i])) return i + 1;
    }
    return 0;
  }

  std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::open(test::text_data("llama3").string());
};

TEST_F(TextStreamTest, CharactersSplitOverTokens) {
  TextStream stream(*tokenizer_, {});
  const std::vector<int> ids = byte_tokens(*tokenizer_, "é🙂");
  const std::vector<std::string> expected = {"\uFFFD",  "é",       "é\uFFFD",
                                             "é\uFFFD", "é\uFFFD", "é🙂"};
  ASSERT_EQ(ids.size(), expected.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_FALSE(stream.push(ids[i]));
    EXPECT_EQ(stream.text(), expected[i]);
  }
}

TEST_F(TextStreamTest, StopStringOverTokenBorders) {
  TextStream stream(*tokenizer_, {"END"});
  EXPECT_EQ(push_all(stream, byte_tokens(*tokenizer_, "go EN, ENEND on")), 12u);
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.text(), "go EN, EN");
  EXPECT_TRUE(stream.push(byte_tokens(*tokenizer_, "x")[0]));  // nothing is added any more
  EXPECT_EQ(stream.text(), "go EN, EN");
}

TEST_F(TextStreamTest, StopStringWithinOneToken) {
  TextStream stream(*tokenizer_, {"hee"});
  ASSERT_TRUE(tokenizer_->id("Ġwheel"));
  EXPECT_TRUE(stream.push(*tokenizer_->id("Ġwheel")));
  EXPECT_EQ(stream.text(), " w");
}

TEST_F(TextStreamTest, EarliestPlaceWins) {
  TextStream stream(*tokenizer_, {"eel", "whe", "wheel"});
  EXPECT_TRUE(stream.push(*tokenizer_->id("Ġwheel")));
  EXPECT_EQ(stream.text(), " ");
  // The one that is complete first wins, even if a longer one began before it.
  TextStream other(*tokenizer_, {"abcd", "bc"});
  EXPECT_EQ(push_all(other, byte_tokens(*tokenizer_, "xabcd")), 4u);
  EXPECT_EQ(other.text(), "xa");
}

TEST_F(TextStreamTest, SpecialTokensAddNoText) {
  const int special = *tokenizer_->id("<|eot_id|>");
  TextStream stream(*tokenizer_, {"ab", "<|eot_id|>"});
  EXPECT_FALSE(stream.push(special));
  EXPECT_FALSE(stream.push(byte_tokens(*tokenizer_, "a")[0]));
  EXPECT_FALSE(stream.push(special));
  EXPECT_EQ(stream.text(), "a");
  EXPECT_TRUE(stream.push(byte_tokens(*tokenizer_, "b")[0]));
  EXPECT_EQ(stream.text(), "");
  // The same characters as plain text do count.
  TextStream plain(*tokenizer_, {"<|eot_id|>"});
  EXPECT_EQ(push_all(plain, byte_tokens(*tokenizer_, "x<|eot_id|>")), 11u);
  EXPECT_EQ(plain.text(), "x");
}

TEST_F(TextStreamTest, StopInTheMiddleOfBrokenUtf8) {
  TextStream stream(*tokenizer_, {"é"});
  EXPECT_EQ(push_all(stream, byte_tokens(*tokenizer_, "\xF0\x9F\xC3\xA9")), 4u);
  EXPECT_EQ(stream.text(), "\uFFFD");
}

TEST_F(TextStreamTest, RefusesAnEmptyStopString) {
  EXPECT_THROW(TextStream(*tokenizer_, {"a", ""}), std::invalid_argument);
}

TEST_F(TextStreamTest, IdsOutsideTheVocabularyAddNothing) {
  TextStream stream(*tokenizer_, {"x"});
  EXPECT_FALSE(stream.push(-1));
  EXPECT_FALSE(stream.push(1 << 20));
  EXPECT_EQ(stream.text(), "");
}

// Against searching the whole text after every token.
TEST_F(TextStreamTest, EqualsTheSlowSearchOnRandomTexts) {
  std::mt19937 random(5);
  const auto pick = [&](size_t n) { return random() % n; };
  const std::string letters = "ab<é";
  int hits = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stop;
    for (size_t i = 0, n = 1 + pick(3); i < n; ++i) {
      std::string text;
      for (size_t j = 0, m = 1 + pick(4); j < m; ++j) text += "ab"[pick(2)];
      stop.push_back(text);
    }
    TextStream stream(*tokenizer_, stop);
    std::string all;
    for (int step = 0; step < 30 && !stream.stopped(); ++step) {
      std::string piece;
      for (size_t j = 0, m = 1 + pick(3); j < m; ++j) piece += letters[pick(letters.size())];
      const std::vector<int> ids = byte_tokens(*tokenizer_, piece);
      for (const int id : ids) {
        if (stream.stopped()) break;
        all += tokenizer_->bytes(id);
        size_t cut = std::string::npos;
        for (const std::string& text : stop) cut = std::min(cut, all.find(text));
        ASSERT_EQ(stream.push(id), cut != std::string::npos);
        ASSERT_EQ(stream.text(), replace_invalid_utf8(all.substr(0, cut)));
        hits += stream.stopped() ? 1 : 0;
      }
    }
  }
  EXPECT_GT(hits, 1000);
}

}  // namespace
}  // namespace headrace
