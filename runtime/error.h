// Errors of the runtime. `main` maps each to an exit code (launch/exit_code.cpp).
#pragma once

#include <stdexcept>

#include "engine/error.h"

namespace headrace {

// The command line, a configuration file or the input as a whole is wrong. Exit 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The run was told to end before it had begun. Exit 75.
class Interrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A text that the model's tokenizer cannot cut into pieces. In a batch only its request fails.
class TextError : public ModelError {
 public:
  using ModelError::ModelError;
};

}  // namespace headrace
