// Owners of what CUDA hands out. Destructors never throw: what cannot be given back is the
// driver's when the process ends.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "engine/device/cuda/check.h"

namespace headrace {

// Makes a device the calling thread's. It stays so: to make the one before current again would set
// that one up, which takes its memory.
inline void use_device(int device) { check_cuda(cudaSetDevice(device), "choosing a device"); }

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) : size_(bytes) {
    const cudaError_t code = cudaMalloc(&data_, bytes);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // the next call must not report it again
      throw DoesNotFit("the GPU has less than " + std::to_string(bytes) +
                       " bytes of memory left; end what else runs on it, or give less "
                       "--device-memory");
    }
    check_cuda(code, "allocating memory");
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_;
};

// Host memory that copies go to and from directly.
class PinnedMemory {
 public:
  explicit PinnedMemory(size_t bytes) {
    check_cuda(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "allocating pinned memory");
  }
  ~PinnedMemory() { cudaFreeHost(data_); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

class CudaStream {
 public:
  CudaStream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  }
  ~CudaStream() { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream's work, with its time.
class CudaEvent {
 public:
  explicit CudaEvent(unsigned flags = cudaEventDefault) {
    check_cuda(cudaEventCreateWithFlags(&event_, flags), "making an event");
  }
  ~CudaEvent() { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(const CudaStream& stream) { record(stream.get()); }
  void record(cudaStream_t stream) {
    check_cuda(cudaEventRecord(event_, stream), "recording an event");
  }
  void synchronize() const { check_cuda(cudaEventSynchronize(event_), "waiting for an event"); }
  bool is_reached() const {
    const cudaError_t code = cudaEventQuery(event_);
    if (code != cudaErrorNotReady) check_cuda(code, "asking for an event");
    return code == cudaSuccess;
  }
  cudaEvent_t get() const { return event_; }
  // Both must have happened.
  double seconds_since(const CudaEvent& begin) const {
    float milliseconds = 0;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin.event_, event_), "timing");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace headrace
