// The readers of files from outside, each as one function of bytes, for the fuzzers.
//
// An input is the content of the files that a reader takes, one after the other with a zero byte
// between them. Whatever it holds, a reader opens it or throws an error that its header names;
// anything else that comes out is a finding, and so is a crash, a hang or an absurd allocation.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace headrace::fuzz {

struct Reader {
  const char* name;
  // Puts the input into files below `folder` and reads them. True if they were accepted; false for
  // an error that names its file. Throws what else the reader throws, and std::logic_error where
  // what was read is not what its header promises.
  bool (*accepts)(const std::string& folder, const std::string& input);
  // Valid inputs, from the repository's test data. May write below `folder`.
  std::vector<std::string> (*seeds)(const std::string& folder);
};

std::span<const Reader> readers();

// nullptr: there is none of this name.
const Reader* find_reader(std::string_view name);

// One in each of the files of this folder.
bool accepts_gguf(const std::string& folder, const std::string& input);
bool accepts_safetensors(const std::string& folder, const std::string& input);
bool accepts_tokenizer_json(const std::string& folder, const std::string& input);
bool accepts_tokenizer_gguf(const std::string& folder, const std::string& input);
bool accepts_requests(const std::string& folder, const std::string& input);
bool accepts_results(const std::string& folder, const std::string& input);
std::vector<std::string> gguf_seeds(const std::string& folder);
std::vector<std::string> safetensors_seeds(const std::string& folder);
std::vector<std::string> tokenizer_json_seeds(const std::string& folder);
std::vector<std::string> tokenizer_gguf_seeds(const std::string& folder);
std::vector<std::string> requests_seeds(const std::string& folder);
std::vector<std::string> results_seeds(const std::string& folder);

// The files of an input: at most `most`, of which the last takes the remaining bytes.
std::vector<std::string> parts_of(const std::string& input, size_t most);

// Throws std::logic_error(what) unless it holds.
void promise(bool holds, const std::string& what);
// That a message names the file it is about.
void promise_named(const std::string& message, const std::string& folder);

}  // namespace headrace::fuzz
