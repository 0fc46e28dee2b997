#include "runtime/text/added_tokens.h"

#include <algorithm>
#include <cstdint>

#include "runtime/text/utf8.h"

namespace headrace {
namespace {

bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word(std::string_view character) {
  static const SplitPattern word = SplitPattern::word();
  return word.finds(character);
}

// Where the last character before `end` (> 0) begins.
size_t last_begin(std::string_view text, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

char32_t character_at(std::string_view text, size_t at) { return next_character(text, at); }

size_t space_begin(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t begin = last_begin(text, end);
    if (!is_space(character_at(text, begin))) break;
    end = begin;
  }
  return end;
}

size_t space_end(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (!is_space(next_character(text, next))) break;
    at = next;
  }
  return at;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const size_t before = last_begin(text, begin);
    if (is_word(text.substr(before, begin - before))) return false;
  }
  if (end == text.size()) return true;
  size_t after = end;
  next_character(text, after);
  return !is_word(text.substr(end, after - end));
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  nodes_.emplace_back();
  for (size_t t = 0; t < tokens_.size(); ++t) {
    const std::string& content = tokens_[t].content;
    if (content.empty()) continue;
    int node = 0;
    for (const char c : content) {
      const auto [edge, fresh] =
          nodes_[static_cast<size_t>(node)].next.try_emplace(c, static_cast<int>(nodes_.size()));
      node = edge->second;
      if (fresh) nodes_.emplace_back();
    }
    nodes_[static_cast<size_t>(node)].token = static_cast<int>(t);
    starts_[static_cast<uint8_t>(content[0])] = true;
  }
}

AddedTokenFinder::Match AddedTokenFinder::longest_at(std::string_view text, size_t at) const {
  Match match{-1, 0};
  int node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto& next = nodes_[static_cast<size_t>(node)].next;
    const auto edge = next.find(text[i]);
    if (edge == next.end()) break;
    node = edge->second;
    const int token = nodes_[static_cast<size_t>(node)].token;
    if (token >= 0) match = {token, i + 1 - at};
  }
  return match;
}

void AddedTokenFinder::scan(std::string_view text, const std::function<void(int)>& found,
                            const std::function<void(std::string_view)>& between) const {
  size_t done = 0;  // everything before it has been handed out
  for (size_t at = 0; at < text.size();) {
    const Match match =
        starts_[static_cast<uint8_t>(text[at])] ? longest_at(text, at) : Match{-1, 0};
    if (match.token < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(match.token)];
    size_t begin = at;
    size_t end = at + match.length;
    at = end;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.lstrip) begin = std::max(space_begin(text, begin), done);
    if (token.rstrip) end = space_end(text, end);
    if (done < begin) between(text.substr(done, begin - done));
    found(token.id);
    done = end;
  }
  if (done < text.size()) between(text.substr(done));
}

}  // namespace headrace
