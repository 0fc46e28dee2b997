// WireStream on a GPU.

#include <cuda_runtime_api.h>

#include <chrono>
#include <deque>
#include <stdexcept>
#include <string>
#include <thread>

#include "comm/error.h"
#include "comm/nccl/wire_stream.h"

namespace headrace {
namespace {

// What only a mistake of headrace brings about is no CommError.
void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // the next call must not report it again
  const std::string text = std::string(what) + " on the GPU failed: " + cudaGetErrorString(code);
  if (code == cudaErrorIllegalAddress || code == cudaErrorIllegalInstruction ||
      code == cudaErrorMisalignedAddress || code == cudaErrorLaunchFailure) {
    throw std::runtime_error(text);
  }
  throw CommError(text);
}

class CudaStream final : public WireStream {
 public:
  explicit CudaStream(int device) {
    check(cudaSetDevice(device), "choosing a device");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    check(cudaMalloc(&probe_, kProbeBytes), "allocating device memory");
  }
  ~CudaStream() override {
    if (hangs_) return;  // freeing waits for the device
    for (const cudaEvent_t event : marks_) cudaEventDestroy(event);
    cudaFree(probe_);
    cudaStreamDestroy(stream_);
  }

  cudaStream_t get() override { return stream_; }
  std::byte* probe() override { return static_cast<std::byte*>(probe_); }

  void mark() override {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    marks_.push_back(event);
    check(cudaEventRecord(event, stream_), "recording an event");
  }

  uint64_t passed() override {
    while (!marks_.empty()) {
      const cudaError_t code = cudaEventQuery(marks_.front());
      if (code == cudaErrorNotReady) break;
      check(code, "passing hidden states on");
      cudaEventDestroy(marks_.front());
      marks_.pop_front();
      ++passed_;
    }
    return passed_;
  }

  void drain() override {
    const auto end = std::chrono::steady_clock::now() + kLongestDrain;
    while (cudaStreamQuery(stream_) == cudaErrorNotReady) {
      hangs_ = std::chrono::steady_clock::now() > end;
      if (hangs_) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

 private:
  static constexpr std::chrono::seconds kLongestDrain{5};

  bool hangs_ = false;
  cudaStream_t stream_ = nullptr;
  void* probe_ = nullptr;
  std::deque<cudaEvent_t> marks_;  // not passed yet
  uint64_t passed_ = 0;
};

}  // namespace

std::unique_ptr<WireStream> make_cuda_stream(int device) {
  return std::make_unique<CudaStream>(device);
}

}  // namespace headrace
