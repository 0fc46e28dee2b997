#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/text/split_pattern.h"

#include <pcre2.h>

#include <algorithm>
#include <cstdint>

#include "engine/error.h"
#include "runtime/error.h"
#include "runtime/text/onig_translate.h"

namespace headrace {
namespace {

struct MatchDataFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct MatchContextFree {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string pcre_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct SplitPattern::Code {
  pcre2_code* compiled = nullptr;
  std::string place;

  Code(const std::string& pcre_pattern, std::string where) : place(std::move(where)) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre_pattern.data()), pcre_pattern.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr);
    if (compiled == nullptr) {
      throw ModelError(place + ": the regular expression is not valid: " + pcre_message(error) +
                       ". Use the tokenizer as its publisher made it.");
    }
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // failing is fine: slower, same matches
  }
  ~Code() { pcre2_code_free(compiled); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
};

SplitPattern::SplitPattern(std::shared_ptr<const Code> code) : code_(std::move(code)) {}

SplitPattern::SplitPattern(std::string_view pattern, const std::string& place)
    : code_(std::make_shared<Code>(translate_onig_pattern(pattern, place), place)) {}

SplitPattern SplitPattern::digits(bool individual) {
  return SplitPattern(
      std::make_shared<Code>(numeric_class() + (individual ? "" : "+"), "pre_tokenizer Digits"));
}

SplitPattern SplitPattern::word() {
  return SplitPattern(std::make_shared<Code>(word_class(), "single_word"));
}

// Successive searches in one text.
class SplitPattern::Matcher {
 public:
  Matcher(const Code& code, std::string_view text)
      : code_(code),
        text_(text),
        match_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)) {
    if (!match_ || !context_) throw std::bad_alloc();
    // Backtracking over one long run costs about one step per character; more means a pattern
    // whose time explodes.
    constexpr size_t kSteps = 10'000'000;
    const size_t limit = std::min<size_t>(kSteps + 64 * text.size(), UINT32_MAX);
    pcre2_set_match_limit(context_.get(), static_cast<uint32_t>(limit));
  }

  // The first match that begins at `from` or later is then in begin() and end().
  bool next(size_t from) {
    int rc = run(from, 0);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = run(from, PCRE2_NO_JIT);
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0) {
      throw TextError(code_.place + ": the regular expression fails on a text of " +
                      std::to_string(text_.size()) + " bytes: " + pcre_message(rc) +
                      ". Shorten the text or use another tokenizer.");
    }
    return true;
  }
  size_t begin() const { return pcre2_get_ovector_pointer(match_.get())[0]; }
  size_t end() const { return pcre2_get_ovector_pointer(match_.get())[1]; }

 private:
  int run(size_t from, uint32_t options) {
    return pcre2_match(code_.compiled, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(),
                       from, PCRE2_NO_UTF_CHECK | options, match_.get(), context_.get());
  }

  const Code& code_;
  std::string_view text_;
  std::unique_ptr<pcre2_match_data, MatchDataFree> match_;
  std::unique_ptr<pcre2_match_context, MatchContextFree> context_;
};

bool SplitPattern::finds(std::string_view text) const { return Matcher(*code_, text).next(0); }

void SplitPattern::split(std::string_view text, std::vector<std::string_view>& parts) const {
  const auto add = [&](size_t begin, size_t end) {
    if (begin < end) parts.push_back(text.substr(begin, end - begin));
  };
  Matcher matcher(*code_, text);
  size_t done = 0;  // everything before it is in `parts`
  size_t from = 0;
  while (from < text.size() && matcher.next(from)) {
    add(done, matcher.begin());
    add(matcher.begin(), matcher.end());
    done = from = matcher.end();
    if (matcher.begin() < matcher.end()) continue;
    do {  // an empty match only cuts; look on after the next character
      ++from;
    } while (from < text.size() && (static_cast<uint8_t>(text[from]) & 0xC0) == 0x80);
  }
  add(done, text.size());
}

}  // namespace headrace
