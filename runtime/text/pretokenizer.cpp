#include "runtime/text/pretokenizer.h"

#include "runtime/text/nfc.h"

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

}  // namespace

std::string Pretokenizer::normalize(std::string_view text) const {
  return nfc ? headrace::nfc(text) : std::string(text);
}

void Pretokenizer::run(std::string_view text,
                       const std::function<void(std::string_view)>& piece) const {
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
