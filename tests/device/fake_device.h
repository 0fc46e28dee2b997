// A device on the CPU that does what is queued as late or as early as streams and events allow, in
// random order: who does not wait for what it needs reads poison, or what is not its own any more.
// What CUDA does not allow throws std::logic_error: anything but ops while they are recorded, and
// sequences with more rows than are said to be the most. Memory that is freed, or no longer pinned,
// while something is queued that uses it ends the test program. Work of a stream that is gone is
// done all the same.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "engine/device/device.h"
#include "engine/ops/cpu/cpu_ops.h"

namespace headrace::test {

class FakeDevice final : public Device {
 public:
  // What of the rules it breaks, to show that tests on it see that.
  enum class Fault { kNone, kStreamsDoNotWait, kHostDoesNotWait };

  explicit FakeDevice(uint64_t seed, Fault fault = Fault::kNone);
  ~FakeDevice() override;

  // Bytes of all that was allocated, of which nothing is taken off again.
  uint64_t allocated() const { return allocated_; }

  // Bytes of all copies from and to host memory that is not pinned, which the host waits for.
  uint64_t unpinned() const { return unpinned_; }
  // From the first attention on such copies throw.
  void refuse_unpinned() { refuses_unpinned_ = true; }

  // Calls that wait for all of a GPU's streams, or may: allocating, freeing, pinning.
  uint64_t whole_waits() const { return work_->whole_waits; }

  // Queued so far.
  int64_t attentions() const { return attentions_; }

  // After so many more waits of the host the device is lost.
  void lose_after(int64_t waits) { waits_left_ = waits; }

  // When it is lost, who frees its memory waits forever.
  void hang_when_lost() { hangs_ = true; }

  // What is queued in the stream from now on is not done until let_go(); who waits for it gets a
  // std::logic_error.
  void hold(DeviceStream& stream);
  void let_go() { held_ = false; }

  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override;  // poisoned
  std::unique_ptr<DeviceStream> make_stream(Track track = Track::kGpu) override;
  std::unique_ptr<DeviceEvent> make_event() override;
  std::unique_ptr<DeviceEvent> make_event_with_time() override { return make_event(); }
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
  void silu_multiply(DeviceStream& stream, const float* gate, const float* up, int64_t rows,
                     int64_t width, int64_t stride, float scale, Half* y) override;
  void attention(DeviceStream& stream, const KvPageShape& shape, const AttentionSequence* sequences,
                 int64_t count, int64_t most_rows, int heads, float scale, const float* q,
                 Half* out) override;

 private:
  // Where what it uses begins; memory of which more than the beginning is meant is in `spans`.
  struct Uses {
    std::vector<const void*> places;
    std::vector<std::span<const std::byte>> spans;
    bool any_in(std::span<const std::byte> memory) const;
  };
  struct Work {
    std::function<bool()> ready;  // null: at once
    std::function<void()> run;
    Uses uses;
  };
  using Queue = std::deque<Work>;
  // Outlives the device where memory does.
  struct AllWork {
    std::vector<std::shared_ptr<Queue>> queues;
    uint64_t whole_waits = 0;
    bool checks = true;
    bool hangs = false;
    // `memory` is no longer what it was.
    void gone(std::span<const std::byte> memory, const char* how);
  };
  class Memory;
  class Stream;
  class Event;
  class Recording;

  void queue(DeviceStream& stream, Uses uses, std::function<void()> run,
             std::function<bool()> ready = {});
  // One piece of work that may go first; false if there is none.
  bool run_one();
  void run_until(const std::function<bool()>& done);
  void host_waits(const std::function<bool()>& done);

  std::mt19937_64 random_;
  int64_t time_ = 0;  // ns; passes as work is done
  Fault fault_;
  bool held_ = false;
  bool hangs_ = false;
  uint64_t allocated_ = 0;
  uint64_t unpinned_ = 0;
  bool refuses_unpinned_ = false;
  int64_t attentions_ = 0;
  int64_t waits_left_ = INT64_MAX;
  bool is_lost_ = false;
  std::unique_ptr<Recording> recording_;
  class Pin;
  // Throws ResourceMissing, as CUDA does, if only a part of it is pinned.
  void check_pinned(std::span<const std::byte> host);
  void check_there() const;
  void check_not_recording(const char* what) const;
  std::vector<std::span<std::byte>> pinned_;
  std::shared_ptr<AllWork> work_ = std::make_shared<AllWork>();
  ThreadPool threads_{1, 0};
  Cpu cpu_{threads_, kernels("auto")};
  CpuOps cpu_ops_{cpu_};
};

}  // namespace headrace::test
