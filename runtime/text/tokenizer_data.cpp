#include "runtime/text/tokenizer_data.h"

#include <algorithm>
#include <cmath>

#include "engine/error.h"
#include "runtime/text/utf8.h"

namespace headrace {
namespace {

// Sixteen times the largest vocabulary known; keeps a broken id from asking for all memory.
constexpr int64_t kMaxTokens = 1 << 22;
// Ten times what any model is known to have; looking for added tokens takes some 130 bytes of
// memory for each of theirs.
constexpr size_t kMaxAddedBytes = size_t{4} << 20;
// Twice what SentencePiece's longest known ones have.
constexpr size_t kLongestPiece = 128;
// Eight times as many as Llama-2's have.
constexpr size_t kMostMergesPerPiece = 16;

[[noreturn]] void broken(const std::string& place, const std::string& what) {
  throw ModelError(place + ": " + what +
                   ". The tokenizer is damaged; fetch the model's files again.");
}

}  // namespace

void Tokenizer::Data::add_entry(const std::string& content, int64_t id, const std::string& place) {
  if (id < 0 || id >= kMaxTokens) {
    broken(place, "token \"" + content + "\" has id " + std::to_string(id) +
                      ", outside the range 0 to " + std::to_string(kMaxTokens - 1));
  }
  if (!is_valid_utf8(content)) {
    broken(place, "token " + std::to_string(id) + " is not valid UTF-8");
  }
  const auto index = static_cast<size_t>(id);
  if (index >= contents.size()) {
    contents.resize(index + 1);
    present.resize(index + 1, false);
  }
  if (present[index]) {
    broken(place, "tokens \"" + contents[index] + "\" and \"" + content + "\" have the same id, " +
                      std::to_string(id));
  }
  if (const auto [at, fresh] = ids.emplace(content, static_cast<int>(id)); !fresh) {
    broken(place, "token \"" + content + "\" occurs twice, with ids " + std::to_string(at->second) +
                      " and " + std::to_string(id));
  }
  contents[index] = content;
  present[index] = true;
}

void Tokenizer::Data::add_merge(const std::string& left, const std::string& right,
                                const std::string& place) {
  const auto known = [&](const std::string& token) {
    const auto found = ids.find(token);
    if (found == ids.end()) {
      broken(place, "the merge of \"" + left + "\" and \"" + right + "\" needs the token \"" +
                        token + "\", which is not in the vocabulary");
    }
    return found->second;
  };
  const int left_id = known(left);
  const int right_id = known(right);
  merges[Bpe::key(left_id, right_id)] = {next_rank_++, known(left + right)};
}

void Tokenizer::Data::add_merge(const std::string& pair, const std::string& place) {
  const size_t space = pair.find(' ');
  if (space == std::string::npos || pair.find(' ', space + 1) != std::string::npos) {
    broken(place, "the merge \"" + pair + "\" is not two tokens with a space between them");
  }
  add_merge(pair.substr(0, space), pair.substr(space + 1), place);
}

void Tokenizer::Data::add_merges_by_score(std::span<const double> scores,
                                          const std::vector<bool>& whole,
                                          const std::string& place) {
  std::vector<int> by_score;
  for (size_t id = 0; id < contents.size(); ++id) {
    if (!present[id] || whole[id]) continue;
    if (!std::isfinite(scores[id])) {
      broken(place, "the score of token " + std::to_string(id) + " is not a number");
    }
    if (contents[id].size() > kLongestPiece) {
      broken(place, "token " + std::to_string(id) + " is longer than " +
                        std::to_string(kLongestPiece) + " bytes");
    }
    by_score.push_back(static_cast<int>(id));
  }
  const auto score = [&](int id) { return scores[static_cast<size_t>(id)]; };
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](int a, int b) { return score(a) > score(b); });
  const auto part = [&](std::string_view text) {
    const auto found = ids.find(std::string(text));
    return found == ids.end() || whole[static_cast<size_t>(found->second)] ? -1 : found->second;
  };
  for (size_t i = 0; i < by_score.size(); ++i) {
    if (i > 0 && score(by_score[i]) != score(by_score[i - 1])) ++next_rank_;
    const std::string_view text = contents[static_cast<size_t>(by_score[i])];
    if (text.empty()) continue;
    size_t cut = 0;
    next_character(text, cut);
    for (; cut < text.size(); next_character(text, cut)) {
      const int left = part(text.substr(0, cut));
      const int right = left < 0 ? -1 : part(text.substr(cut));
      if (right >= 0) merges[Bpe::key(left, right)] = {next_rank_, by_score[i]};
    }
    if (merges.size() > kMostMergesPerPiece * contents.size()) {
      broken(place, "its pieces can be made of each other in too many ways");
    }
  }
}

void Tokenizer::Data::add_added(AddedToken token, int64_t id, const std::string& place) {
  if (token.content.empty()) return;
  added_bytes_ += token.content.size();
  if (added_bytes_ > kMaxAddedBytes) broken(place, "the added tokens take more than 4 MiB");
  const auto known = ids.find(token.content);
  if (known == ids.end()) {
    add_entry(token.content, id, place);
    only_added_.insert(static_cast<int>(id));
  } else if (known->second != id) {
    broken(place, "the added token \"" + token.content + "\" has id " + std::to_string(id) +
                      " but the vocabulary gives it id " + std::to_string(known->second));
  }
  token.id = static_cast<int>(id);
  added.push_back(std::move(token));
}

void Tokenizer::Data::check_normalized(const std::string& place) const {
  size_t bytes = 0;
  for (const AddedToken& token : added) {
    if (token.normalized) bytes += pretokenizer.normalize(token.content).size();
    if (bytes > kMaxAddedBytes) broken(place, "the added tokens, normalised, take more than 4 MiB");
  }
}

int Tokenizer::Data::require_id(const std::string& content, const std::string& place) const {
  const auto found = ids.find(content);
  if (found == ids.end()) broken(place, "\"" + content + "\" is not in the vocabulary");
  return found->second;
}

}  // namespace headrace
