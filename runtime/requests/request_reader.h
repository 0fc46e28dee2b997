// Reads a batch file line by line; memory does not grow with the file but for 8 bytes a line
// (a hash of each custom_id, to find duplicates).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "runtime/requests/request.h"

namespace headrace {

// The command line or configuration is wrong, or a file it names is. Exit 2.
// (Declared in runtime/error.h.)

class RequestReader {
 public:
  // `path` "-" reads standard input. Throws UsageError if it cannot be opened.
  RequestReader(const std::string& path, RequestDefaults defaults);
  ~RequestReader();

  // The next line's request or what is wrong with it; blank lines are skipped; nullopt at the end.
  // Never throws for what a line contains. Throws IoError if reading fails.
  std::optional<std::variant<Request, BadLine>> next();

  int64_t line() const;  // of the last item, from 1

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One line, without its line break. `line` is its number, for messages and default ids.
std::variant<Request, BadLine> parse_request(const std::string& text, int64_t line,
                                             const RequestDefaults& defaults);

}  // namespace headrace
