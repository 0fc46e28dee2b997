// A GPU as the engine sees it: memory, streams, copies and ops. Implemented by a module
// (device_module.h), so this header knows nothing of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/half.h"
#include "engine/ops/ops.h"
#include "engine/timeline.h"

namespace headrace {

// Work of a stream is done in order; streams go on beside each other. Calls that take a stream
// return when the work is queued; memory must stay valid until it is done.
class DeviceStream {
 public:
  virtual ~DeviceStream() = default;
  // Returns when all that was queued is done. Throws DeviceLost, or std::runtime_error for a
  // mistake of headrace, if some of it failed.
  virtual void synchronize() = 0;
};

// A place in a stream's work; none as long as none was recorded.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  // Returns when what is before the place is done. Throws DeviceLost if some of it failed.
  virtual void synchronize() = 0;
  virtual bool is_reached() = 0;
  // The same as synchronize(), but for some milliseconds at most; whether it is reached.
  virtual bool wait_a_moment() = 0;
  // Nanoseconds since an earlier place; both are reached, and events with a time.
  virtual int64_t since(DeviceEvent& earlier) = 0;
};

// Owner of device memory; goes back to the device with it.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual std::byte* data() = 0;
  virtual size_t size() const = 0;

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
};

// Work that was queued once and can be queued again as a whole.
class DeviceRecording {
 public:
  virtual ~DeviceRecording() = default;
};

// Host memory that is pinned as long as it lives.
class DevicePin {
 public:
  virtual ~DevicePin() = default;
};

// A product on the tensor cores: y[row][n] = scale * sum over k of x[row][k] * w[n][k] (+ bias[n]),
// f16 factors, f32 sums. The bits of a row depend on nothing but that row, w and the shape of w.
struct HalfProduct {
  // What becomes of it in y [rows][stride]: floats, added to floats, or relu of it in f16.
  enum class Result { kFloat, kAdded, kReluHalf };
  const Half* x = nullptr;  // [rows][inputs]
  int64_t rows = 0;
  const Half* w = nullptr;  // [outputs][inputs]
  int64_t outputs = 0, inputs = 0;
  const float* bias = nullptr;  // [outputs], or null
  float scale = 1.0f;
  Result result = Result::kFloat;
  void* y = nullptr;
  int64_t stride = 0;  // elements
  // So many products of the same x at once, whose w, bias and y are so many elements apart; not
  // kReluHalf. The bits are those of each alone.
  int count = 1;
  int64_t w_apart = 0, bias_apart = 0, y_apart = 0;
};

// One of them, not several at once, with panels of w from `first` on in place of product.w.
struct PackedProduct {
  HalfProduct product;
  PackedMatrix w = {};
  int64_t first = 0;

  HEADRACE_BOTH int64_t panels() const { return (product.outputs + kPanelRows - 1) / kPanelRows; }
};
// Rows of x with which products may read low-bit weights as they are packed.
inline constexpr int64_t kFewRows = 64;

// One thread uses a device and what it makes, which it outlives. All pointers are to device memory
// but where "host" says otherwise. Throws DoesNotFit, ResourceMissing, DeviceLost.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::unique_ptr<DeviceBuffer> allocate(size_t bytes) = 0;
  // `track`: where a timeline has what the stream does; copies out of one for KV pages or hidden
  // states are on that of what comes back.
  virtual std::unique_ptr<DeviceStream> make_stream(Track track = Track::kGpu) = 0;
  virtual std::unique_ptr<DeviceEvent> make_event() = 0;
  virtual std::unique_ptr<DeviceEvent> make_event_with_time() = 0;
  // The event is the place after all that is queued in the stream.
  virtual void record(DeviceStream& stream, DeviceEvent& event) = 0;
  // What is queued from now on begins when what is before the event's place of now is done.
  virtual void wait(DeviceStream& stream, DeviceEvent& event) = 0;
  virtual void copy_in(DeviceStream& stream, std::byte* to,
                       std::span<const std::byte> from_host) = 0;
  virtual void copy_out(DeviceStream& stream, std::span<std::byte> to_host,
                        const std::byte* from) = 0;

  // From now on what is queued in the stream is recorded, not done: ops only, whose arguments are
  // then as they were at each replay(). Nothing waits meanwhile.
  virtual void record(DeviceStream& stream) = 0;
  virtual std::unique_ptr<DeviceRecording> end_recording(DeviceStream& stream) = 0;
  virtual void replay(DeviceStream& stream, DeviceRecording& recording) = 0;

  // Host memory that copies go to and from directly until the owner dies; it must live as long.
  virtual std::unique_ptr<DevicePin> pin(std::span<std::byte> host) = 0;

  // The ops of ops/vector_ops.h and ops/rope.h with the same arguments and the same bits.
  virtual void normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                         float* y) = 0;
  virtual void add(DeviceStream& stream, float* x, const float* y, int64_t rows, int64_t n) = 0;
  virtual void relu(DeviceStream& stream, float* x, int64_t rows, int64_t n) = 0;
  // cos and sin: [rows][head_dim / 2] of the rows of x.
  virtual void apply_rope(DeviceStream& stream, const float* cos, const float* sin, float* x,
                          int64_t rows, int heads, int head_dim) = 0;

  // The ops of ops/linear.h with the same bits; the panels are in device memory, too.
  virtual void linear_panels(DeviceStream& stream, const float* x, int64_t rows,
                             const PackedMatrix& w, const float* bias, int64_t first, int64_t end,
                             float* y) = 0;
  virtual void gate_panels(DeviceStream& stream, const float* x, int64_t rows,
                           const PackedMatrix& w, const float* bias, int64_t first, int64_t end,
                           float* gate) = 0;

  // The ops of ops/attention.h with the same bits. The `count` sequences and their page tables are
  // in device memory, too; `most_rows` is the largest of their rows.
  virtual void store_kv(DeviceStream& stream, const KvPageShape& shape,
                        const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                        const float* k, const float* v) = 0;
  virtual void attention(DeviceStream& stream, const KvPageShape& shape,
                         const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                         int heads, float scale, const float* q, float* out) = 0;

  // x[row] = tokens[ids[row]] (+ positions[places[row]], where `places` is not null).
  virtual void embed(DeviceStream& stream, const EmbeddingTables& tables, const int32_t* ids,
                     const int32_t* places, int64_t rows, float* x) = 0;
  // Brings `best` [rows] up to date with logits [rows][width] of the tokens from `id` on.
  virtual void find_best(DeviceStream& stream, const float* logits, int64_t rows, int64_t width,
                         int64_t id, BestToken* best) = 0;

  // Arithmetic in f16 with f32 sums. A row's bits do not depend on other rows, but are not the
  // CPU's.
  // x may be pinned host memory.
  virtual void to_half(DeviceStream& stream, const float* x, int64_t count, Half* y) = 0;
  virtual void normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                         Half* y) = 0;
  // Panels [first, end) of w as rows of f16 [..][w.cols], as many as w has, which begin at 16
  // bytes.
  virtual void unpack(DeviceStream& stream, const PackedMatrix& w, int64_t first, int64_t end,
                      Half* rows) = 0;
  virtual void multiply(DeviceStream& stream, const HalfProduct& product) = 0;
  // Products of the same x. They have the bits of unpack() and multiply(), which a device may do in
  // `rows`: what that has room for, of each.
  virtual void multiply_packed(DeviceStream& stream, std::span<const PackedProduct> products,
                               Half* rows);
  // y[row][i] = scale * silu(gate[row][i]) * up[row][i], rows of `stride` elements, up's of
  // `width`.
  virtual void silu_multiply(DeviceStream& stream, const float* gate, const float* up, int64_t rows,
                             int64_t width, int64_t stride, float scale, Half* y) = 0;
  virtual void attention(DeviceStream& stream, const KvPageShape& shape,
                         const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                         int heads, float scale, const float* q, Half* out) = 0;
};

inline void Device::multiply_packed(DeviceStream& stream, std::span<const PackedProduct> products,
                                    Half* rows) {
  for (const PackedProduct& packed : products) {
    unpack(stream, packed.w, packed.first, packed.first + packed.panels(), rows);
    HalfProduct product = packed.product;
    product.w = rows;
    multiply(stream, product);
  }
}

}  // namespace headrace
