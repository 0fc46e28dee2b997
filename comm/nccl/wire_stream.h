// The stream of a wire, and how far it has come.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace headrace {

// Nothing waits but drain(). Throws CommError where CUDA fails.
class WireStream {
 public:
  virtual ~WireStream() = default;

  virtual cudaStream_t get() = 0;
  // kProbeBytes of the device's memory, for what goes over the wire when it is set up.
  virtual std::byte* probe() = 0;
  // Marks the place after all that is queued.
  virtual void mark() = 0;
  // How many of the marks the stream has passed.
  virtual uint64_t passed() = 0;
  // Returns when nothing is under way, whether it failed or not; at the latest after some seconds,
  // for a GPU that hangs must not keep its rank from ending.
  virtual void drain() = 0;
};

inline constexpr size_t kProbeBytes = 16;

// Makes the device the calling thread's, which then uses the stream.
using MakeWireStream = std::function<std::unique_ptr<WireStream>(int device)>;
std::unique_ptr<WireStream> make_cuda_stream(int device);

}  // namespace headrace
