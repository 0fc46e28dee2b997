// Errors of the communication room. `main` maps each to an exit code (launch/exit_code.cpp).
#pragma once

#include <stdexcept>

namespace headrace {

// Another rank has died, is stopped or stuck, or a GPU between them has failed; names it and its
// host. Exit 75: try again with --resume.
class PeerLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The launcher or MPI itself is not set up as headrace needs it. Exit 69.
class CommError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace headrace
