// Reads a batch file line by line; memory does not grow with the file but for a hash of each
// custom_id (to find duplicates), at most 21 bytes a line.
//
// Format: the OpenAI Batch API's input file, one JSON object per line,
//   {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "..."}}
// or the short form, which is a body with an optional custom_id: {"prompt": "..."} or
// {"messages": [...]}. UTF-8; a byte order mark, CRLF and a missing last line break are accepted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "runtime/requests/request.h"

namespace headrace {

// Without the line break. A prompt for a context of a million tokens has room, also as ids; a line
// takes several times its bytes while it is parsed.
inline constexpr size_t kMaxLineBytes = size_t{8} << 20;

// What is read from this input is gone: "-" (standard input), a pipe, a terminal, a FIFO.
bool comes_once(const std::string& input);

// One thread.
class RequestReader {
 public:
  // `path` "-" reads standard input. Throws UsageError if it cannot be opened.
  RequestReader(const std::string& path, RequestDefaults defaults);
  ~RequestReader();

  // The next line's request or what is wrong with it; blank lines are skipped; nullopt at the end.
  // No two items have the same custom_id: one that stands already on an earlier line is replaced
  // by "line-<n>" (by "line-<n>-2" and so on if that is taken, too), so that each item gets a
  // result of its own, and the same one in every run.
  // Each has the digest of its line, 0 for one that is too long.
  // Never throws for what a line contains. Throws IoError if reading fails.
  std::optional<std::variant<Request, BadLine>> next();

  // False if next() would have to wait for input; waits for some itself up to that long, or until a
  // signal. True once a whole line has come, or the end. Throws IoError if reading fails.
  bool ready(int milliseconds);

  int64_t line() const;  // of the last item, from 1

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// XXH3-64 of a line without the white space between its values: tells whether a line that has a
// result is still the same one. The same on every machine and in every version.
uint64_t line_digest(std::string_view line);

// One line, without its line break. `line` is its number, for messages and default ids.
// Any thread. Never throws for what the text contains.
std::variant<Request, BadLine> parse_request(const std::string& text, int64_t line,
                                             const RequestDefaults& defaults);

}  // namespace headrace
