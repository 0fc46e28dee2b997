#include "tests/fuzz/readers.h"

#include <stdexcept>

namespace headrace::fuzz {
namespace {

constexpr Reader kReaders[] = {
    {"gguf", accepts_gguf, gguf_seeds},
    {"safetensors", accepts_safetensors, safetensors_seeds},
    {"tokenizer_json", accepts_tokenizer_json, tokenizer_json_seeds},
    {"tokenizer_gguf", accepts_tokenizer_gguf, tokenizer_gguf_seeds},
    {"requests", accepts_requests, requests_seeds},
    {"results", accepts_results, results_seeds},
};

}  // namespace

std::span<const Reader> readers() { return kReaders; }

const Reader* find_reader(std::string_view name) {
  for (const Reader& reader : kReaders) {
    if (name == reader.name) return &reader;
  }
  return nullptr;
}

std::vector<std::string> parts_of(const std::string& input, size_t most) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (parts.size() + 1 < most) {
    const size_t end = input.find('\0', begin);
    if (end == std::string::npos) break;
    parts.push_back(input.substr(begin, end - begin));
    begin = end + 1;
  }
  parts.push_back(input.substr(begin));
  return parts;
}

void promise(bool holds, const std::string& what) {
  if (!holds) throw std::logic_error(what);
}

void promise_named(const std::string& message, const std::string& folder) {
  promise(message.find(folder) != std::string::npos, "an error names no file: " + message);
}

}  // namespace headrace::fuzz
