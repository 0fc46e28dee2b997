// A library with NCCL's functions for two ranks that are one thread of one process, where what NCCL
// would do in its own threads and on the device goes on when it is asked for.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>

namespace headrace::test {

// What a cudaStream_t points to. Work is done in order; it says false as long as it cannot be.
struct FakeStream {
  std::deque<std::function<bool()>> work;

  void go_on() {
    while (!work.empty() && work.front()()) work.pop_front();
  }
};

// What the library exports besides, with C linkage.
struct FakeNccl {
  int fail_id = 0;        // the code of ncclGetUniqueId; here and below 0 is none
  int fail_init = 0;      // the error found while a communicator is set up
  int fail_transfer = 0;  // the error found when a transfer is handed over
  int alive = 0;          // communicators
  int destroyed = 0, aborted = 0;
  int misused = 0;  // calls that NCCL does not allow
};
// FakeNccl* headrace_fake_nccl();
inline constexpr char kFakeNccl[] = "headrace_fake_nccl";

}  // namespace headrace::test
