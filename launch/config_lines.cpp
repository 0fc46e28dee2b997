#include "launch/config_lines.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iterator>

#include "runtime/error.h"
#include "runtime/text/utf8.h"

namespace headrace {
namespace {

bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_' || c == '.';
}

class Reader {
 public:
  Reader(std::istream& file, const std::string& path)
      : path_(path), text_(std::istreambuf_iterator<char>(file), {}) {}

  std::vector<ConfigLine> read() {
    std::vector<ConfigLine> lines;
    for (skip_lines(); !at_end(); skip_lines()) {
      lines.push_back(line());
      end_line(lines.back().name);
    }
    return lines;
  }

 private:
  bool at_end() const { return at_ == text_.size(); }
  char peek() const { return at_end() ? '\n' : text_[at_]; }
  char take() {
    const char c = text_[at_++];
    line_ += c == '\n';
    return c;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw UsageError(path_ + ": line " + std::to_string(line_) + ": " + what);
  }

  void skip_blanks() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\r') take();
  }
  // Also comments.
  void skip_lines() {
    for (skip_blanks(); !at_end() && (peek() == '\n' || peek() == '#'); skip_blanks()) {
      while (peek() != '\n') take();
      if (!at_end()) take();
    }
  }
  void end_line(const std::string& name) {
    skip_blanks();
    if (peek() == '\n' || peek() == '#') return;
    fail(name + " has more behind its value; write one name = value on a line, and text in quotes");
  }

  ConfigLine line() {
    ConfigLine line{line_, "", {}};
    if (peek() == '[') {
      std::string table;
      while (peek() != '\n' && peek() != '\r') table += take();
      fail(table + " is a table; headrace reads plain name = value lines, remove its heading");
    }
    while (is_name(peek())) line.name += take();
    skip_blanks();
    if (line.name.empty() || peek() != '=') fail("write name = value, as max-batch = 16");
    take();
    skip_blanks();
    if (peek() == '[') {
      line.values = list(line.name);
    } else {
      line.values = {value(line.name, "")};
    }
    return line;
  }

  std::vector<std::string> list(const std::string& name) {
    std::vector<std::string> values;
    take();
    for (skip_lines(); peek() != ']' || at_end(); skip_lines()) {
      if (at_end()) fail("the list of " + name + " has no end; write ] behind it");
      values.push_back(value(name, ",]"));
      skip_lines();
      if (peek() == ',') {
        take();
      } else if (peek() != ']' && !at_end()) {
        fail("the list of " + name + " wants a comma between two values, and text in quotes");
      }
    }
    take();
    return values;
  }

  // A string, or what stands there up to a blank or one of `ends`.
  std::string value(const std::string& name, std::string_view ends) {
    if (peek() == '"' || peek() == '\'') return quoted(name);
    std::string word;
    while (std::string_view(" \t\r\n#").find(peek()) == std::string_view::npos &&
           ends.find(peek()) == std::string_view::npos) {
      word += take();
    }
    if (word.empty()) fail(name + " has no value; write " + name + " = ...");
    return word;
  }

  std::string quoted(const std::string& name) {
    std::string text;
    const char quote = take();
    while (peek() != quote) {
      if (peek() == '\n')
        fail("the text of " + name + " has no end; write " + quote + " behind it");
      const char c = take();
      if (c == '\\' && quote == '"') {
        escaped(text);
      } else {
        text += c;
      }
    }
    take();
    return text;
  }

  void escaped(std::string& text) {
    static constexpr std::string_view kNames = "\"\\bfnrt", kMeant = "\"\\\b\f\n\r\t";
    const char c = peek();
    const size_t known = kNames.find(c);
    if (known != std::string_view::npos) {
      take();
      text += kMeant[known];
      return;
    }
    const size_t digits = c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t code = 0;
    const char* const first = text_.data() + std::min(at_ + 1, text_.size());
    const char* const last = text_.data() + std::min(at_ + 1 + digits, text_.size());
    const bool whole = digits > 0 && std::from_chars(first, last, code, 16).ptr == first + digits;
    if (!whole || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
      fail("\\" + std::string(1, c) +
           " is no escape; write \\\\ for a backslash, or the text in single quotes");
    }
    at_ += 1 + digits;
    append_utf8(code, text);
  }

  const std::string& path_;
  const std::string text_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace

std::vector<ConfigLine> read_config_lines(std::istream& file, const std::string& path) {
  return Reader(file, path).read();
}

}  // namespace headrace
