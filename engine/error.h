// Errors of the engine, one type per cause. `main` maps each to an exit code
// (launch/exit_code.cpp).
#pragma once

#include <stdexcept>
#include <string>

namespace headrace {

// A model file or directory cannot be used: names file, offset or field, and the cure. Exit 65.
class ModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tier's budget is too small; the text holds the table of need and budget. Exit 73.
class DoesNotFit : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Reading or writing failed in the operating system. Exit 74.
class IoError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The machine lacks something that was asked for (vector target, GPU, io_uring). Exit 69.
class ResourceMissing : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A GPU failed that had worked: what was done is kept, and can be continued on another one.
// Exit 75.
class DeviceLost : public ResourceMissing {
 public:
  using ResourceMissing::ResourceMissing;
};

}  // namespace headrace
