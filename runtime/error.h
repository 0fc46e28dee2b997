// Errors of the runtime. `main` maps each to an exit code (launch/exit_code.cpp).
#pragma once

#include <stdexcept>

namespace headrace {

// The command line, a configuration file or the input as a whole is wrong. Exit 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace headrace
