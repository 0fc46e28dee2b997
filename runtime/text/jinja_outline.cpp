#include "runtime/text/jinja_outline.h"

#include <algorithm>
#include <cctype>

namespace headrace {
namespace {

struct Word {
  enum Kind { kName, kString, kNumber, kSign } kind;
  std::string text;  // strings: with escapes resolved
};
using Words = std::vector<Word>;

struct Part {
  enum Kind { kData, kOutput, kBlock, kComment } kind;
  std::string data;
  Words words;
  bool trim_before = false;  // {%-
  bool trim_after = false;   // -%}
};

bool is_name_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// Reads the words of one tag up to its closing sign.
class TagReader {
 public:
  TagReader(std::string_view text, size_t at, std::string_view close)
      : text_(text), at_(at), close_(close) {}

  bool read(Part& part) {
    while (true) {
      while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
      if (at_ >= text_.size()) return false;
      if (text_[at_] == '-' && text_.substr(at_ + 1, 2) == close_) {
        part.trim_after = true;
        ++at_;
      }
      if (text_.substr(at_, 2) == close_) {
        at_ += 2;
        return true;
      }
      if (!read_word(part.words)) return false;
    }
  }
  size_t end() const { return at_; }

 private:
  bool read_word(Words& words) {
    const char c = text_[at_];
    if (c == '\'' || c == '"') return read_string(words);
    const size_t begin = at_;
    if (is_name_character(c)) {
      while (at_ < text_.size() && is_name_character(text_[at_])) ++at_;
      const bool number = std::isdigit(static_cast<unsigned char>(c)) != 0;
      words.push_back(
          {number ? Word::kNumber : Word::kName, std::string(text_.substr(begin, at_ - begin))});
      return true;
    }
    at_ += text_.substr(at_ + 1, 1) == "=" ? 2 : 1;
    words.push_back({Word::kSign, std::string(text_.substr(begin, at_ - begin))});
    return true;
  }

  bool read_string(Words& words) {
    const char quote = text_[at_++];
    std::string value;
    for (; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      if (c == quote) {
        ++at_;
        words.push_back({Word::kString, std::move(value)});
        return true;
      }
      if (c != '\\') {
        value += c;
        continue;
      }
      if (++at_ >= text_.size()) return false;
      switch (text_[at_]) {
        case 'n':
          value += '\n';
          break;
        case 'r':
          value += '\r';
          break;
        case 't':
          value += '\t';
          break;
        case '\\':
        case '\'':
        case '"':
          value += text_[at_];
          break;
        default:
          return false;
      }
    }
    return false;
  }

  std::string_view text_;
  size_t at_;
  std::string_view close_;
};

std::optional<std::vector<Part>> read_parts(std::string_view text) {
  if (text.ends_with('\n')) text.remove_suffix(1);  // Jinja drops one newline at the end
  std::vector<Part> parts;
  size_t at = 0;
  while (at < text.size()) {
    size_t open = at;
    while (open < text.size() && text.substr(open, 2) != "{%" && text.substr(open, 2) != "{{" &&
           text.substr(open, 2) != "{#") {
      ++open;
    }
    if (open > at) parts.push_back({Part::kData, std::string(text.substr(at, open - at)), {}});
    if (open == text.size()) break;
    const char kind = text[open + 1];
    Part part{kind == '%' ? Part::kBlock : kind == '{' ? Part::kOutput : Part::kComment, "", {}};
    at = open + 2;
    if (at < text.size() && text[at] == '-') {
      part.trim_before = true;
      ++at;
    }
    if (kind == '#') {
      const size_t close = text.find("#}", at);
      if (close == std::string_view::npos) return std::nullopt;
      part.trim_after = close > at && text[close - 1] == '-';
      at = close + 2;
    } else {
      TagReader reader(text, at, kind == '%' ? "%}" : "}}");
      if (!reader.read(part)) return std::nullopt;
      at = reader.end();
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

// Jinja's whitespace control, applied to the data between two tags.
void trim_data(std::vector<Part>& parts) {
  constexpr const char* kWhitespace = " \t\r\n\v\f";
  const auto is_block = [](const Part& part) {
    return part.kind == Part::kBlock || part.kind == Part::kComment;
  };
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].kind != Part::kData) continue;
    std::string& data = parts[i].data;
    const bool at_line_start = i == 0 || (is_block(parts[i - 1]) && data.starts_with('\n'));
    if (i > 0 && parts[i - 1].trim_after) {
      data.erase(0, data.find_first_not_of(kWhitespace));
    } else if (i > 0 && is_block(parts[i - 1]) && data.starts_with('\n')) {
      data.erase(0, 1);
    }
    if (i + 1 == parts.size()) continue;
    if (parts[i + 1].trim_before) {
      data.erase(data.find_last_not_of(kWhitespace) + 1);
    } else if (is_block(parts[i + 1])) {
      const size_t text_end = data.find_last_not_of(" \t") + 1;
      const bool own_line = text_end == 0 ? at_line_start : data[text_end - 1] == '\n';
      if (own_line) data.erase(text_end);
    }
  }
}

// The words in one spelling: a.b and a['b'] become "a.b", a[0] becomes "a.0".
Words join_paths(const Words& words) {
  Words out;
  for (size_t i = 0; i < words.size(); ++i) {
    const auto sign = [&](size_t at, const char* text) {
      return at < words.size() && words[at].kind == Word::kSign && words[at].text == text;
    };
    const bool after_name = !out.empty() && out.back().kind == Word::kName;
    if (after_name && sign(i, ".") && i + 1 < words.size() && words[i + 1].kind == Word::kName) {
      out.back().text += "." + words[i + 1].text;
      i += 1;
    } else if (after_name && sign(i, "[") && sign(i + 2, "]") &&
               (words[i + 1].kind == Word::kString || words[i + 1].kind == Word::kNumber)) {
      out.back().text += "." + words[i + 1].text;
      i += 2;
    } else {
      out.push_back(words[i]);
    }
  }
  return out;
}

std::string spell(const Words& words) {
  std::string text;
  for (const Word& word : words) {
    if (!text.empty()) text += ' ';
    text += word.kind == Word::kString ? "'" + word.text + "'" : word.text;
  }
  return text;
}

bool has_marks(const std::string& text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return c > 0 && c <= JinjaOutline::kVariable; });
}

// The value of terms joined by + or ~, with marks; nullopt if it is anything else.
std::optional<std::string> value_of(const Words& words) {
  std::string value;
  for (size_t i = 0; i < words.size(); ++i) {
    const Word& term = words[i];
    if (term.kind == Word::kString) {
      if (has_marks(term.text)) return std::nullopt;
      value += term.text;
    } else if (term.text == "message.role") {
      value += JinjaOutline::kRole;
    } else if (term.text == "message.content") {
      const bool filtered = i + 1 < words.size() && words[i + 1].text == "|";
      if (filtered && (i + 2 >= words.size() || words[i + 2].text != "trim")) return std::nullopt;
      value += filtered ? JinjaOutline::kTrimmedContent : JinjaOutline::kContent;
      if (filtered) i += 2;
    } else if (term.text == "messages.0.content") {
      value += JinjaOutline::kFirstContent;
    } else if (term.text == "bos_token") {
      value += JinjaOutline::kBos;
    } else if (term.text == "content") {
      value += JinjaOutline::kVariable;
    } else {
      return std::nullopt;
    }
    if (++i < words.size() && words[i].text != "+" && words[i].text != "~") return std::nullopt;
  }
  return value;
}

// Walks the parts and writes the outline.
class Outliner {
 public:
  std::optional<JinjaOutline> run(const std::vector<Part>& parts) {
    for (const Part& part : parts) {
      const bool known = part.kind == Part::kBlock    ? block(join_paths(part.words))
                         : skipping()                 ? true
                         : part.kind == Part::kOutput ? write(join_paths(part.words))
                                                      : data(part.data);
      if (!known) return std::nullopt;
    }
    if (!open_.empty()) return std::nullopt;
    return std::move(outline_);
  }

 private:
  struct Open {
    std::string keyword;  // "if" or "for"
    bool skip;            // this branch, or all of what is around it, is left out
    bool skip_outside;
  };

  bool skipping() const { return !open_.empty() && open_.back().skip; }

  bool data(const std::string& text) {
    if (has_marks(text)) return false;
    outline_.text += text;
    return true;
  }

  bool write(const Words& words) {
    const auto value = value_of(words);
    if (!value || words.empty()) return false;
    outline_.text += *value;
    return true;
  }

  bool block(const Words& words) {
    if (words.empty() || words[0].kind != Word::kName) return false;
    const std::string& keyword = words[0].text;
    const Words rest(words.begin() + 1, words.end());
    if (keyword == "if" || keyword == "for") return open(keyword, spell(rest));
    if (keyword == "set") return skipping() || assign(rest);
    if (open_.empty()) return false;
    Open& inner = open_.back();
    if (keyword == "elif" || keyword == "else") {
      inner.skip = inner.skip_outside || keyword == "elif";
      return inner.keyword == "if";
    }
    if (keyword != "end" + inner.keyword) return false;
    open_.pop_back();
    return true;
  }

  bool open(const std::string& keyword, const std::string& condition) {
    const bool outside = skipping();
    const bool tools = keyword == "if" && condition == "tools";
    open_.push_back({keyword, outside || tools, outside});
    if (outside || tools) return true;
    if (keyword == "if") {
      outline_.conditions.push_back(condition);
      return true;
    }
    return condition == "message in messages" || condition == "message in loop_messages";
  }

  bool assign(const Words& words) {
    const std::string text = spell(words);
    if (text == "loop_messages = messages" || text == "add_generation_prompt = false") return true;
    if (!text.starts_with("content = ")) return false;
    outline_.text += JinjaOutline::kAssign;
    return write(Words(words.begin() + 2, words.end()));
  }

  JinjaOutline outline_;
  std::vector<Open> open_;
};

}  // namespace

std::optional<JinjaOutline> outline_jinja(std::string_view text) {
  auto parts = read_parts(text);
  if (!parts) return std::nullopt;
  trim_data(*parts);
  return Outliner().run(*parts);
}

}  // namespace headrace
