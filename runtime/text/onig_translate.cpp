#include "runtime/text/onig_translate.h"

#include <cctype>
#include <map>

#include "engine/error.h"

namespace headrace {
namespace {

// Unicode White_Space. PCRE2's own \s also matches U+180E.
constexpr std::string_view kSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";

// Members of each property in Unicode 16, the version in `tokenizers` 0.23, that PCRE2 10.42
// (Unicode 14) does not know yet. Found by asking both about every character. A newer PCRE2 has
// them already, which does no harm.
const std::map<std::string, std::string_view, std::less<>>& newer_members() {
  static const std::map<std::string, std::string_view, std::less<>> table = {
      {"L",
       "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"
       "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"
       "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}"
       "\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}"
       "\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}"
       "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"
       "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"
       "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
      {"Lu", "\\x{1c89}\\x{a7cb}-\\x{a7cc}\\x{a7da}\\x{a7dc}\\x{10d50}-\\x{10d65}"},
      {"Ll", "\\x{1c8a}\\x{a7cd}\\x{a7db}\\x{10d70}-\\x{10d85}\\x{1df25}-\\x{1df2a}"},
      {"Lt", ""},
      {"Lm",
       "\\x{10d4e}\\x{10d6f}\\x{16d40}-\\x{16d42}\\x{16d6b}-\\x{16d6c}\\x{1e030}-\\x{1e06d}"
       "\\x{1e4eb}"},
      {"Lo",
       "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d4d}\\x{10d4f}\\x{10ec2}-\\x{10ec4}"
       "\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}"
       "\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}"
       "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}"
       "\\x{16100}-\\x{1611d}\\x{16d43}-\\x{16d6a}\\x{18cff}\\x{1b132}\\x{1b155}"
       "\\x{1e4d0}-\\x{1e4ea}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}"
       "\\x{31350}-\\x{323af}"},
      {"M",
       "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}"
       "\\x{113b8}-\\x{113c0}\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}"
       "\\x{113d2}\\x{113e1}-\\x{113e2}\\x{11f00}-\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}"
       "\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}"
       "\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}"},
      {"N",
       "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
       "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"
       "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"},
      {"Nd",
       "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
       "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}"
       "\\x{1e5f1}-\\x{1e5fa}"},
      {"P",
       "\\x{1b4e}-\\x{1b4f}\\x{1b7f}\\x{10d6e}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}"
       "\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11f43}-\\x{11f4f}\\x{16d6d}-\\x{16d6f}\\x{1e5ff}"},
      {"S",
       "\\x{2427}-\\x{2429}\\x{2ffc}-\\x{2fff}\\x{31e4}-\\x{31e5}\\x{31ef}"
       "\\x{10d8e}-\\x{10d8f}\\x{1cc00}-\\x{1ccef}\\x{1cd00}-\\x{1ceb3}\\x{1f6dc}"
       "\\x{1f774}-\\x{1f776}\\x{1f77b}-\\x{1f77f}\\x{1f7d9}\\x{1f8b2}-\\x{1f8bb}"
       "\\x{1f8c0}-\\x{1f8c1}\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}\\x{1fa8f}"
       "\\x{1faad}-\\x{1faaf}\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}"
       "\\x{1fada}-\\x{1fadc}\\x{1fadf}\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}"
       "\\x{1fbcb}-\\x{1fbef}"},
  };
  return table;
}

// Members of N by Unicode 17, which the Digits pre-tokenizer follows.
constexpr std::string_view kNewerNumeric =
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11de0}-\\x{11de9}"
    "\\x{11f50}-\\x{11f59}\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{16ff4}-\\x{16ff6}"
    "\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}";

constexpr std::string_view kSupported =
    "Supported: literals, classes, |, (?:...), (?i:...), lookahead, ? * + {m,n}, . ^ $, \\r \\n "
    "\\t, "
    "escaped punctuation, \\s \\S \\d and \\p{...} of L Lu Ll Lt Lm Lo M N Nd P S.";

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& place)
      : pattern_(pattern), place_(place) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape(/*in_class=*/false);
      } else if (c == '[') {
        character_class();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        interval();
      } else {
        out_ += c;
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw ModelError(place_ + ": the regular expression has " + what + " at byte " +
                     std::to_string(at_) + ", which headrace does not support. " +
                     std::string(kSupported));
  }

  bool next_is(std::string_view text) const { return pattern_.substr(at_, text.size()) == text; }

  void group() {
    if (next_is("(?")) {
      for (const std::string_view start : {"(?:", "(?i:", "(?!", "(?="}) {
        if (!next_is(start)) continue;
        out_ += start;
        at_ += start.size();
        return;
      }
      refuse("a group \"" + std::string(pattern_.substr(at_, 4)) + "\"");
    }
    out_ += '(';
    ++at_;
  }

  // {m}, {m,} or {m,n}. Ruby's syntax reads a + after it as a second repetition, PCRE2 as
  // "possessive".
  void interval() {
    size_t end = at_ + 1;
    while (end < pattern_.size() &&
           (std::isdigit(static_cast<unsigned char>(pattern_[end])) != 0 || pattern_[end] == ',')) {
      ++end;
    }
    if (end >= pattern_.size() || pattern_[end] != '}' || end == at_ + 1 ||
        pattern_[at_ + 1] == ',') {
      refuse("a brace that is no {m,n}");
    }
    if (end + 1 < pattern_.size() && pattern_[end + 1] == '+') refuse("{m,n}+");
    out_ += pattern_.substr(at_, end + 1 - at_);
    at_ = end + 1;
  }

  void character_class() {
    out_ += '[';
    ++at_;
    if (next_is("^")) {
      out_ += '^';
      ++at_;
    }
    if (next_is("]")) refuse("an empty class");
    after_set_ = false;
    while (!next_is("]")) {
      if (at_ >= pattern_.size()) refuse("an unclosed class");
      const char c = pattern_[at_];
      if (c == '[') refuse("a class within a class");
      if (c == '-' && after_set_ && !next_is("-]")) refuse("a range that begins with a set");
      after_set_ = false;
      if (next_is("&&")) refuse("an intersection of classes");
      if (c == '\\') {
        escape(/*in_class=*/true);
      } else {
        out_ += c;
        ++at_;
      }
    }
    out_ += ']';
    ++at_;
  }

  void escape(bool in_class) {
    if (at_ + 1 >= pattern_.size()) refuse("a lone backslash");
    const char c = pattern_[at_ + 1];
    if (c == 's') {
      members(std::string(kSpace), false, in_class);
    } else if (c == 'S') {
      members(std::string(kSpace), true, in_class);
    } else if (c == 'd') {
      members("\\p{Nd}" + std::string(newer_members().at("Nd")), false, in_class);
    } else if (c == 'p' || c == 'P') {
      property(c == 'P', in_class);
      return;
    } else if (c == 'r' || c == 'n' || c == 't' ||
               std::ispunct(static_cast<unsigned char>(c)) != 0) {
      out_ += '\\';
      out_ += c;
    } else {
      refuse(std::string("the escape \\") + c);
    }
    at_ += 2;
  }

  void property(bool negated, bool in_class) {
    const size_t close = pattern_.find('}', at_);
    if (pattern_.substr(at_ + 2, 1) != "{" || close == std::string_view::npos) {
      refuse("a property without braces");
    }
    std::string_view name = pattern_.substr(at_ + 3, close - at_ - 3);
    if (name.substr(0, 1) == "^") {
      negated = !negated;
      name.remove_prefix(1);
    }
    const auto known = newer_members().find(name);
    if (known == newer_members().end()) refuse("the property \"" + std::string(name) + "\"");
    members("\\p{" + known->first + "}" + std::string(known->second), negated, in_class);
    at_ = close + 1;
  }

  void members(const std::string& list, bool negated, bool in_class) {
    if (!in_class) {
      out_ += (negated ? "[^" : "[") + list + "]";
      return;
    }
    if (negated) refuse("a negated set within a class");
    if (out_.back() == '-' && out_[out_.size() - 2] != '[') refuse("a range that ends in a set");
    out_ += list;
    after_set_ = true;
  }

  std::string_view pattern_;
  const std::string& place_;
  size_t at_ = 0;
  bool after_set_ = false;  // within a class: the last member was \s, \d or \p
  std::string out_;
};

}  // namespace

std::string translate_onig_pattern(std::string_view pattern, const std::string& place) {
  return Translator(pattern, place).run();
}

std::string word_class() {
  std::string members = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
  for (const char* name : {"L", "M", "Nd"}) members += newer_members().find(name)->second;
  return "[" + members + "]";
}

std::string numeric_class() { return "[\\p{N}" + std::string(kNewerNumeric) + "]"; }

}  // namespace headrace
