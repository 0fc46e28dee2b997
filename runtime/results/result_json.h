// One line of the results file: the OpenAI Batch API's output line, and its error line.
//
// Source: the OpenAI API reference, "The request output object" of the Batch API, with the response
// bodies of "Create completion" and "Create chat completion". Beyond it: "token_ids" in a choice if
// asked for. Two runs differ in "created" only: ids are derived from the custom_id, but for
// "request_id", which is the digest of the request's line.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/requests/request.h"
#include "runtime/results/result.h"

namespace headrace {

struct ResultFormat {
  bool token_ids = false;
  // Empty functions: tokens are shown as "token_id:<n>", their bytes as null.
  std::function<std::string(int token)> token_text;
  std::function<std::string(int token)> token_raw_bytes;
  std::function<bool(int token)> is_special = {};  // left out of texts; empty: none is
};

// Both without a line break. `created`: seconds since 1970. Invalid UTF-8 in texts becomes U+FFFD.
// Throws std::invalid_argument if the result's logprobs do not go with its tokens.
std::string result_line(const RequestResult& result, const ResultFormat& format, int64_t created);
std::string error_line(const BadLine& error);

// The digest that a record's "request_id" holds; nothing if it holds none.
std::optional<uint64_t> digest_of(std::string_view request_id);

// The double to write for `value`: its shortest decimal form, which reads back to the same float32
// bits (read as a double and then rounded, too). JSON has no infinities: -9999 stands for minus
// infinity, as in the OpenAI API.
double printable(float value);

}  // namespace headrace
