#include "tests/fuzz/mutate.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <iterator>
#include <random>

namespace headrace::fuzz {
namespace {

// Of JSON and of patterns, and what text from outside may hold.
constexpr const char* kPieces[] = {"{",          "}",
                                   "[",          "]",
                                   "\"",         ",",
                                   ":",          "null",
                                   "true",       "false",
                                   "-0",         "1e400",
                                   "\\",         "\\u0000",
                                   "\xff",       "\xed\xa0\x80",
                                   "\n",         "\r\n",
                                   "\\ud83d",    "[[[[[[[[",
                                   "{\"a\":",    "\"\"",
                                   "-",          ".5e-9",
                                   "(?:a+)+",    "{%",
                                   "%}",         "{{",
                                   "}}",         "\xef\xbb\xbf",
                                   "../",        "\u00c4",
                                   "<|im_end|>", " "};
constexpr uint64_t kNumbers[] = {0,
                                 1,
                                 2,
                                 31,
                                 127,
                                 255,
                                 256,
                                 0x7fff,
                                 0xffff,
                                 0x7fffffff,
                                 0x80000000,
                                 0xffffffff,
                                 0x100000000,
                                 uint64_t{1} << 40,
                                 uint64_t{1} << 60,
                                 ~uint64_t{0} >> 1,
                                 uint64_t{1} << 63,
                                 ~uint64_t{0}};
constexpr size_t kMostBytes = 4 << 20;

class Mutation {
 public:
  Mutation(const std::vector<std::string>& seeds, uint64_t seed) : seeds_(seeds), random_(seed) {
    text_ = seeds_[below(seeds_.size())];
  }

  std::string run() {
    for (size_t changes = 1 + below(6); changes > 0; --changes) change();
    return std::move(text_);
  }

 private:
  // Not a distribution of the standard library, which differ.
  size_t below(size_t n) { return n == 0 ? 0 : static_cast<size_t>(random_() % n); }
  size_t place() { return below((text_.size() >> below(8)) + 1); }
  size_t length_at(size_t at) {
    return std::min(text_.size() - at, 1 + below(size_t{1} << below(10)));
  }

  void change() {
    const size_t at = place();
    switch (below(11)) {
      case 0:
        if (at < text_.size()) text_[at] = static_cast<char>(text_[at] ^ (1 << below(8)));
        break;
      case 1:
        if (at < text_.size()) text_[at] = static_cast<char>(random_());
        break;
      case 2:
      case 3:
        binary_number(at);
        break;
      case 4:
      case 5:
        decimal_number(at);
        break;
      case 6:
        text_.insert(at, kPieces[below(std::size(kPieces))]);
        break;
      case 7:
        text_.erase(at, length_at(at));
        break;
      case 8:
        repeat(at);
        break;
      case 9:
        overwrite(at);
        break;
      default:
        if (below(4) == 0) text_.resize(at);
    }
  }

  uint64_t number() {
    const uint64_t known = kNumbers[below(std::size(kNumbers))];
    switch (below(4)) {
      case 0:
        return text_.size() + below(3) - 1;
      case 1:
        return random_();
      default:
        return known + below(3) - 1;
    }
  }

  void binary_number(size_t at) {
    const uint64_t value = number();
    const size_t width = std::min(text_.size() - at, size_t{1} << below(4));
    std::memcpy(text_.data() + at, &value, width);
  }

  // The next one in the text.
  void decimal_number(size_t at) {
    const auto is_digit = [](unsigned char c) { return std::isdigit(c) != 0; };
    const auto begin =
        std::find_if(text_.begin() + static_cast<ptrdiff_t>(at), text_.end(), is_digit);
    const auto end = std::find_if_not(begin, text_.end(), is_digit);
    std::string value = std::to_string(number());
    if (below(4) == 0) value = "-" + value;
    if (begin != text_.end()) text_.replace(begin, end, value);
  }

  void repeat(size_t at) {
    const std::string part = text_.substr(at, length_at(at));
    size_t times = 1 + below(size_t{1} << below(12));
    if (text_.size() + times * part.size() > kMostBytes) times = 1;
    std::string repeated;
    for (; times > 0; --times) repeated += part;
    text_.insert(at, repeated);
  }

  void overwrite(size_t at) {
    const std::string& other = seeds_[below(seeds_.size())];
    const size_t from = below((other.size() >> below(8)) + 1);
    const std::string part = other.substr(from, 1 + below(size_t{1} << below(10)));
    text_.replace(at, below(2) * part.size(), part);
  }

  const std::vector<std::string>& seeds_;
  std::mt19937_64 random_;
  std::string text_;
};

}  // namespace

std::string mutated(const std::vector<std::string>& seeds, uint64_t seed) {
  return Mutation(seeds, seed).run();
}

}  // namespace headrace::fuzz
