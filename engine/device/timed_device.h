// A device that says what its streams do: that they go on, at any time; to the calling thread's
// Timeline bytes always, and the time of every op, by the device's own clock, where there is a
// trace.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "engine/device/device.h"

namespace headrace {

// Streams and events of one device are not another's.
class TimedDevice final : public Device {
 public:
  // `moved_on` is called when an op is queued, and of those in streams of kernels, while something
  // is waited for, for every kOpsOfAMark that are done: a step may take longer than other ranks
  // wait for one that seems stuck.
  TimedDevice(std::unique_ptr<Device> device, std::function<void()> moved_on);
  ~TimedDevice() override;

  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override;
  std::unique_ptr<DeviceStream> make_stream(Track track = Track::kGpu) override;
  std::unique_ptr<DeviceEvent> make_event() override;
  std::unique_ptr<DeviceEvent> make_event_with_time() override;
  void record(DeviceStream& stream, DeviceEvent& event) override;
  void wait(DeviceStream& stream, DeviceEvent& event) override;
  void copy_in(DeviceStream& stream, std::byte* to, std::span<const std::byte> from_host) override;
  void copy_out(DeviceStream& stream, std::span<std::byte> to_host, const std::byte* from) override;
  void record(DeviceStream& stream) override;
  std::unique_ptr<DeviceRecording> end_recording(DeviceStream& stream) override;
  void replay(DeviceStream& stream, DeviceRecording& recording) override;
  std::unique_ptr<DevicePin> pin(std::span<std::byte> host) override;

  void normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                 float* y) override;
  void add(DeviceStream& stream, float* x, const float* y, int64_t rows, int64_t n) override;
  void relu(DeviceStream& stream, float* x, int64_t rows, int64_t n) override;
  void apply_rope(DeviceStream& stream, const float* cos, const float* sin, float* x, int64_t rows,
                  int heads, int head_dim) override;
  void linear_panels(DeviceStream& stream, const float* x, int64_t rows, const PackedMatrix& w,
                     const float* bias, int64_t first, int64_t end, float* y) override;
  void gate_panels(DeviceStream& stream, const float* x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* gate) override;
  void store_kv(DeviceStream& stream, const KvPageShape& shape, const AttentionSequence* sequences,
                int64_t count, int64_t most_rows, const float* k, const float* v) override;
  void attention(DeviceStream& stream, const KvPageShape& shape, const AttentionSequence* sequences,
                 int64_t count, int64_t most_rows, int heads, float scale, const float* q,
                 float* out) override;
  void embed(DeviceStream& stream, const EmbeddingTables& tables, const int32_t* ids,
             const int32_t* places, int64_t rows, float* x) override;
  void find_best(DeviceStream& stream, const float* logits, int64_t rows, int64_t width, int64_t id,
                 BestToken* best) override;
  void to_half(DeviceStream& stream, const float* x, int64_t count, Half* y) override;
  void normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                 Half* y) override;
  void unpack(DeviceStream& stream, const PackedMatrix& w, int64_t first, int64_t end,
              Half* rows) override;
  void multiply(DeviceStream& stream, const HalfProduct& product) override;
  void multiply_packed(DeviceStream& stream, std::span<const PackedProduct> products,
                       Half* rows) override;
  void silu_multiply(DeviceStream& stream, const float* gate, const float* up, int64_t rows,
                     int64_t width, int64_t stride, float scale, Half* y) override;
  void attention(DeviceStream& stream, const KvPageShape& shape, const AttentionSequence* sequences,
                 int64_t count, int64_t most_rows, int heads, float scale, const float* q,
                 Half* out) override;

 private:
  class Stream;
  class Event;
  class Op;

  // A place in time that both clocks know.
  struct Base {
    std::unique_ptr<DeviceEvent> event;
    int64_t ns;  // of Timeline::now()
  };
  struct Span {
    Track track;
    const char* name;
    uint64_t bytes;
    Arg arg;
    std::shared_ptr<Base> base;
    std::unique_ptr<DeviceEvent> begin, end;
  };
  static DeviceStream& inner(DeviceStream& stream);
  static DeviceEvent& inner(DeviceEvent& event);
  // Waits for an event of the device's own.
  void await(DeviceEvent& event);
  std::unique_ptr<DeviceEvent> mark(DeviceStream& stream);
  void find_base(DeviceStream& stream);

  static constexpr int kOpsOfAMark = 32;
  static constexpr size_t kMostMarks = 64;  // of a stream, beside those that are not reached yet
  void collect();

  std::unique_ptr<Device> device_;
  const std::function<void()> moved_on_;
  bool recording_ = false;  // what is queued now is not done now
  std::vector<Stream*> kernels_;
  std::shared_ptr<Base> base_;
  std::deque<Span> spans_;                            // in the order of their ends in each stream
  std::vector<std::unique_ptr<DeviceEvent>> events_;  // not in use
};

}  // namespace headrace
