#include "engine/device/cuda/cuda_device.h"

#include <cuda_runtime.h>

#include <chrono>
#include <optional>
#include <thread>

#include "engine/device/cuda/check.h"
#include "engine/device/cuda/memory.h"
#include "engine/device/cuda/products.h"
#include "engine/ops/cuda/attention.h"
#include "engine/ops/cuda/half_attention.h"
#include "engine/ops/cuda/linear.h"
#include "engine/ops/cuda/row_ops.h"
#include "engine/ops/cuda/unpack.h"

namespace headrace {
namespace {

class Stream final : public DeviceStream {
 public:
  void synchronize() override {
    check_cuda(cudaStreamSynchronize(stream_.get()), "what was queued");
  }
  const CudaStream& get() const { return stream_; }

 private:
  CudaStream stream_;
};

class Event final : public DeviceEvent {
 public:
  explicit Event(unsigned flags) : event_(flags) {}
  void synchronize() override { event_.synchronize(); }
  bool is_reached() override { return event_.is_reached(); }
  bool wait_a_moment() override {
    using std::chrono::microseconds;
    const auto begin = std::chrono::steady_clock::now();
    while (!event_.is_reached()) {
      const auto waited = std::chrono::steady_clock::now() - begin;
      if (waited > microseconds(2000)) return false;
      // Another rank may want the core.
      if (waited > microseconds(50)) std::this_thread::sleep_for(microseconds(50));
    }
    return true;
  }
  int64_t since(DeviceEvent& earlier) override {
    return static_cast<int64_t>(1e9 * event_.seconds_since(static_cast<Event&>(earlier).event_));
  }
  CudaEvent& get() { return event_; }

 private:
  CudaEvent event_;
};

class Memory final : public DeviceBuffer {
 public:
  explicit Memory(size_t bytes) : memory_(bytes) {}
  std::byte* data() override { return memory_.data(); }
  size_t size() const override { return memory_.size(); }

 private:
  DeviceMemory memory_;
};

class Pin final : public DevicePin {
 public:
  explicit Pin(std::span<std::byte> host) : host_(host) {
    check_cuda(cudaHostRegister(host.data(), host.size(), cudaHostRegisterDefault),
               "pinning host memory");
  }
  ~Pin() override { cudaHostUnregister(host_.data()); }

 private:
  std::span<std::byte> host_;
};

class Recording final : public DeviceRecording {
 public:
  explicit Recording(cudaGraph_t graph) {
    const cudaError_t code = cudaGraphInstantiate(&work_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(code, "keeping recorded work");
  }
  ~Recording() override { cudaGraphExecDestroy(work_); }
  cudaGraphExec_t get() const { return work_; }

 private:
  cudaGraphExec_t work_ = nullptr;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int device) { check_cuda(cudaSetDevice(device), "choosing a device"); }

  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override {
    return std::make_unique<Memory>(bytes);
  }
  std::unique_ptr<DeviceStream> make_stream(Track) override { return std::make_unique<Stream>(); }
  // Who waits leaves the core to others.
  std::unique_ptr<DeviceEvent> make_event() override {
    return std::make_unique<Event>(cudaEventDisableTiming | cudaEventBlockingSync);
  }
  std::unique_ptr<DeviceEvent> make_event_with_time() override {
    return std::make_unique<Event>(cudaEventBlockingSync);
  }
  void record(DeviceStream& stream, DeviceEvent& event) override {
    static_cast<Event&>(event).get().record(static_cast<Stream&>(stream).get());
  }
  void wait(DeviceStream& stream, DeviceEvent& event) override {
    check_cuda(cudaStreamWaitEvent(of(stream), static_cast<Event&>(event).get().get(), 0),
               "waiting in a stream");
  }

  void copy_in(DeviceStream& stream, std::byte* to, std::span<const std::byte> from_host) override {
    check_cuda(
        cudaMemcpyAsync(to, from_host.data(), from_host.size(), cudaMemcpyHostToDevice, of(stream)),
        "copying in");
  }
  void copy_out(DeviceStream& stream, std::span<std::byte> to_host,
                const std::byte* from) override {
    check_cuda(
        cudaMemcpyAsync(to_host.data(), from, to_host.size(), cudaMemcpyDeviceToHost, of(stream)),
        "copying out");
  }

  void record(DeviceStream& stream) override {
    check_cuda(cudaStreamBeginCapture(of(stream), cudaStreamCaptureModeThreadLocal), "recording");
  }
  std::unique_ptr<DeviceRecording> end_recording(DeviceStream& stream) override {
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(of(stream), &graph), "recording");
    return std::make_unique<Recording>(graph);
  }
  void replay(DeviceStream& stream, DeviceRecording& recording) override {
    check_cuda(cudaGraphLaunch(static_cast<Recording&>(recording).get(), of(stream)), "replaying");
  }

  std::unique_ptr<DevicePin> pin(std::span<std::byte> host) override {
    return std::make_unique<Pin>(host);
  }

  void normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                 float* y) override {
    cuda::normalise(of(stream), norm, x, rows, y);
  }
  void add(DeviceStream& stream, float* x, const float* y, int64_t rows, int64_t n) override {
    cuda::add(of(stream), x, y, rows * n);
  }
  void relu(DeviceStream& stream, float* x, int64_t rows, int64_t n) override {
    cuda::relu(of(stream), x, rows * n);
  }
  void apply_rope(DeviceStream& stream, const float* cos, const float* sin, float* x, int64_t rows,
                  int heads, int head_dim) override {
    cuda::apply_rope(of(stream), cos, sin, x, rows, heads, head_dim);
  }
  void linear_panels(DeviceStream& stream, const float* x, int64_t rows, const PackedMatrix& w,
                     const float* bias, int64_t first, int64_t end, float* y) override {
    cuda::linear_panels(of(stream), x, rows, w, bias, first, end, y);
  }
  void gate_panels(DeviceStream& stream, const float* x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* gate) override {
    cuda::gate_panels(of(stream), x, rows, w, bias, first, end, gate);
  }
  void store_kv(DeviceStream& stream, const KvPageShape& shape, const AttentionSequence* sequences,
                int64_t count, int64_t most_rows, const float* k, const float* v) override {
    cuda::store_kv(of(stream), shape, sequences, count, most_rows, k, v);
  }
  void attention(DeviceStream& stream, const KvPageShape& shape, const AttentionSequence* sequences,
                 int64_t count, int64_t most_rows, int heads, float scale, const float* q,
                 float* out) override {
    cuda::attention(of(stream), shape, sequences, count, most_rows, heads, scale, q, out);
  }
  void embed(DeviceStream& stream, const EmbeddingTables& tables, const int32_t* ids,
             const int32_t* places, int64_t rows, float* x) override {
    cuda::embed(of(stream), tables, ids, places, rows, x);
  }
  void find_best(DeviceStream& stream, const float* logits, int64_t rows, int64_t width, int64_t id,
                 BestToken* best) override {
    cuda::find_best(of(stream), logits, rows, width, id, best);
  }

  void to_half(DeviceStream& stream, const float* x, int64_t count, Half* y) override {
    cuda::to_half(of(stream), x, count, y);
  }
  void normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                 Half* y) override {
    cuda::normalise(of(stream), norm, x, rows, y);
  }
  void unpack(DeviceStream& stream, const PackedMatrix& w, int64_t first, int64_t end,
              Half* rows) override {
    cuda::unpack(of(stream), w, first, end, rows);
  }
  void multiply(DeviceStream& stream, const HalfProduct& product) override {
    if (!products_) products_.emplace();
    products_->multiply(of(stream), product);
  }
  void multiply_packed(DeviceStream& stream, std::span<const PackedProduct> products,
                       Half* rows) override {
    if (!products_) products_.emplace();
    products_->multiply_packed(of(stream), products, rows);
  }
  void silu_multiply(DeviceStream& stream, const float* gate, const float* up, int64_t rows,
                     int64_t width, int64_t stride, float scale, Half* y) override {
    cuda::silu_multiply(of(stream), gate, up, rows, width, stride, scale, y);
  }
  void attention(DeviceStream& stream, const KvPageShape& shape, const AttentionSequence* sequences,
                 int64_t count, int64_t most_rows, int heads, float scale, const float* q,
                 Half* out) override {
    cuda::half_attention(of(stream), shape, sequences, count, most_rows, heads, scale, q, out);
  }

 private:
  static cudaStream_t of(DeviceStream& stream) { return static_cast<Stream&>(stream).get().get(); }

  std::optional<Products> products_;  // from the first one on
};

}  // namespace

std::unique_ptr<Device> open_cuda_device(int device) {
  return std::make_unique<CudaDevice>(device);
}

}  // namespace headrace
