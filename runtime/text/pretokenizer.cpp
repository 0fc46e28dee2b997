#include "runtime/text/pretokenizer.h"

#include <algorithm>

#include "runtime/text/nfc.h"
#include "runtime/text/sentencepiece.h"
#include "runtime/text/utf8.h"

namespace headrace {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

using Pieces = std::vector<std::string_view>;

Pieces split_all(const std::vector<SplitPattern>& splits, std::string_view text) {
  Pieces pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const SplitPattern& split : splits) {
    Pieces finer;
    for (const std::string_view piece : pieces) split.split(piece, finer);
    pieces = std::move(finer);
  }
  return pieces;
}

void run_metaspace(const Metaspace& space, std::string_view text, bool is_first,
                   const std::function<void(std::string_view)>& piece) {
  std::string marked = replaced(text, " ", kSpaceMark);
  const bool wants_mark = space.prefix == Metaspace::Prefix::kAlways ||
                          (space.prefix == Metaspace::Prefix::kFirst && is_first);
  if (wants_mark && !marked.starts_with(kSpaceMark)) marked.insert(0, kSpaceMark);
  const std::string_view all = marked;
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    end = space.splits ? std::min(all.find(kSpaceMark, begin + 1), all.size()) : all.size();
    piece(all.substr(begin, end - begin));
  }
}

}  // namespace

bool Pretokenizer::has_nfc() const {
  return std::any_of(normalizer.begin(), normalizer.end(), [](const NormalizerStep& step) {
    return step.kind == NormalizerStep::Kind::kNfc;
  });
}

std::string Pretokenizer::normalize(std::string_view text) const {
  std::string normal(text);
  for (const NormalizerStep& step : normalizer) {
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc:
        normal = nfc(normal);
        break;
      case NormalizerStep::Kind::kPrepend:
        if (!normal.empty()) normal = step.to + normal;
        break;
      case NormalizerStep::Kind::kReplace:
        normal = replaced(normal, step.from, step.to);
        break;
    }
  }
  return normal;
}

void Pretokenizer::run(std::string_view text, bool is_first,
                       const std::function<void(std::string_view)>& piece) const {
  if (metaspace) {
    run_metaspace(*metaspace, text, is_first, piece);
    return;
  }
  for (std::string_view part : split_all(splits, text)) {
    std::string with_space;
    if (add_prefix_space && part.front() != ' ') {
      with_space = " " + std::string(part);
      part = with_space;
    }
    for (const std::string_view final_part : split_all(last, part)) piece(final_part);
  }
}

}  // namespace headrace
