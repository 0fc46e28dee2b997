#include "engine/device/timed_device.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

namespace headrace {
namespace {

constexpr size_t kSpansAtOnce = 4096;  // ops of a step that is traced are looked at so often
constexpr size_t kLeastPinnedPerSecond = size_t{1} << 30;  // bytes; 23 GiB were measured

Track way_back(Track track) {
  switch (track) {
    case Track::kKvToGpu:
      return Track::kKvFromGpu;
    case Track::kHiddenToGpu:
      return Track::kHiddenFromGpu;
    default:
      return track;
  }
}

}  // namespace

class TimedDevice::Stream final : public DeviceStream {
 public:
  Stream(TimedDevice& device, std::unique_ptr<DeviceStream> stream, Track track)
      : device_(device), stream_(std::move(stream)), track_(track) {
    if (track == Track::kGpu) device_.kernels_.push_back(this);
  }
  ~Stream() override { std::erase(device_.kernels_, this); }
  void synchronize() override {
    for (; !marks_.empty(); forget_mark()) {
      marks_.front()->synchronize();
      device_.moved_on_();
    }
    if (track_ != Track::kGpu) {
      if (!all_) all_ = device_.device_->make_event();
      device_.device_->record(*stream_, *all_);
      device_.await(*all_);
    }
    stream_->synchronize();
    device_.collect();
    // Clocks drift; nothing is under way in this stream.
    if (track_ == Track::kGpu) device_.find_base(*stream_);
  }
  // An op has been queued.
  void count_op() {
    device_.moved_on_();
    if (track_ != Track::kGpu || device_.recording_ || ++ops_ % kOpsOfAMark != 0) return;
    // It may be that nobody ever waits for this stream as a whole.
    while (marks_.size() >= kMostMarks && marks_.front()->is_reached()) forget_mark();
    if (unused_.empty()) unused_.push_back(device_.device_->make_event());
    device_.device_->record(*stream_, *unused_.back());
    marks_.push_back(std::move(unused_.back()));
    unused_.pop_back();
  }
  // What has been done meanwhile.
  void hear() {
    for (; !marks_.empty() && marks_.front()->is_reached(); forget_mark()) device_.moved_on_();
  }
  DeviceStream& inner() { return *stream_; }
  Track track() const { return track_; }

 private:
  void forget_mark() {
    unused_.push_back(std::move(marks_.front()));
    marks_.pop_front();
  }

  TimedDevice& device_;
  std::unique_ptr<DeviceStream> stream_;
  Track track_;
  int64_t ops_ = 0;
  std::deque<std::unique_ptr<DeviceEvent>> marks_;
  std::vector<std::unique_ptr<DeviceEvent>> unused_;
  std::unique_ptr<DeviceEvent> all_;
};

class TimedDevice::Event final : public DeviceEvent {
 public:
  Event(TimedDevice& device, std::unique_ptr<DeviceEvent> event)
      : device_(device), event_(std::move(event)) {}
  void synchronize() override { device_.await(*event_); }
  bool is_reached() override { return event_->is_reached(); }
  bool wait_a_moment() override { return event_->wait_a_moment(); }
  int64_t since(DeviceEvent& earlier) override {
    return event_->since(TimedDevice::inner(earlier));
  }
  DeviceEvent& inner() { return *event_; }

 private:
  TimedDevice& device_;
  std::unique_ptr<DeviceEvent> event_;
};

// What is queued in a stream while one lives.
class TimedDevice::Op {
 public:
  Op(TimedDevice& device, DeviceStream& stream, const char* name, Arg arg = {})
      : Op(device, stream, name, static_cast<Stream&>(stream).track(), 0, arg) {}
  Op(TimedDevice& device, DeviceStream& stream, const char* name, Track track, uint64_t bytes,
     Arg arg = {})
      : device_(device),
        timed_(static_cast<Stream&>(stream)),
        stream_(static_cast<Stream&>(stream).inner()) {
    Timeline* const timeline = Timeline::of_thread();
    if (!timeline || !timeline->running() || device.recording_) return;
    if (timeline->tracing()) {
      if (!device.base_) device.find_base(stream_);
      span_ = {track, name, bytes, arg, device.base_, device.mark(stream_), nullptr};
    } else if (bytes > 0) {
      timeline->moved(track, name, 0, 0, bytes);
    }
  }
  ~Op() {
    try {
      timed_.count_op();
      if (!span_.begin) return;
      span_.end = device_.mark(stream_);
      device_.spans_.push_back(std::move(span_));
      if (device_.spans_.size() % kSpansAtOnce == 0) device_.collect();
    } catch (const std::exception&) {
      // The op has failed, or the next one will; only a span or a mark is lost.
    }
  }
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

 private:
  TimedDevice& device_;
  Stream& timed_;
  DeviceStream& stream_;
  Span span_{};
};

TimedDevice::TimedDevice(std::unique_ptr<Device> device, std::function<void()> moved_on)
    : device_(std::move(device)), moved_on_(std::move(moved_on)) {}
TimedDevice::~TimedDevice() = default;

DeviceStream& TimedDevice::inner(DeviceStream& stream) {
  return static_cast<Stream&>(stream).inner();
}

DeviceEvent& TimedDevice::inner(DeviceEvent& event) { return static_cast<Event&>(event).inner(); }

void TimedDevice::await(DeviceEvent& event) {
  while (!event.wait_a_moment()) {
    for (Stream* const stream : kernels_) stream->hear();
  }
  event.synchronize();
}

std::unique_ptr<DeviceEvent> TimedDevice::mark(DeviceStream& stream) {
  std::unique_ptr<DeviceEvent> event;
  if (events_.empty()) {
    event = device_->make_event_with_time();
  } else {
    event = std::move(events_.back());
    events_.pop_back();
  }
  device_->record(stream, *event);
  return event;
}

void TimedDevice::find_base(DeviceStream& stream) {
  const Timeline* const timeline = Timeline::of_thread();
  if (!timeline || !timeline->running() || !timeline->tracing()) return;
  auto base = std::make_shared<Base>();
  base->event = device_->make_event_with_time();
  device_->record(stream, *base->event);
  base->event->synchronize();
  base->ns = Timeline::now();
  base_ = std::move(base);
}

void TimedDevice::collect() {
  Timeline* const timeline = Timeline::of_thread();
  std::deque<Span> left;
  for (Span& span : std::exchange(spans_, {})) {
    if (!span.end->is_reached()) {
      left.push_back(std::move(span));
      continue;
    }
    if (timeline) {
      const int64_t begin = span.base->ns + span.begin->since(*span.base->event),
                    end = span.base->ns + span.end->since(*span.base->event);
      if (span.bytes > 0) {
        timeline->moved(span.track, span.name, begin, end, span.bytes);
      } else {
        timeline->record(span.track, span.name, begin, end, span.arg);
      }
    }
    events_.push_back(std::move(span.begin));
    events_.push_back(std::move(span.end));
  }
  spans_ = std::move(left);
}

std::unique_ptr<DeviceBuffer> TimedDevice::allocate(size_t bytes) {
  return device_->allocate(bytes);
}

std::unique_ptr<DeviceStream> TimedDevice::make_stream(Track track) {
  return std::make_unique<Stream>(*this, device_->make_stream(track), track);
}

std::unique_ptr<DeviceEvent> TimedDevice::make_event() {
  return std::make_unique<Event>(*this, device_->make_event());
}

std::unique_ptr<DeviceEvent> TimedDevice::make_event_with_time() {
  return std::make_unique<Event>(*this, device_->make_event_with_time());
}

void TimedDevice::record(DeviceStream& stream, DeviceEvent& event) {
  device_->record(inner(stream), inner(event));
}

void TimedDevice::wait(DeviceStream& stream, DeviceEvent& event) {
  device_->wait(inner(stream), inner(event));
}

void TimedDevice::copy_in(DeviceStream& stream, std::byte* to,
                          std::span<const std::byte> from_host) {
  const Track track = static_cast<Stream&>(stream).track();
  const Op op(*this, stream, "copy", track, track == Track::kGpu ? 0 : from_host.size());
  device_->copy_in(inner(stream), to, from_host);
}

void TimedDevice::copy_out(DeviceStream& stream, std::span<std::byte> to_host,
                           const std::byte* from) {
  const Track track = way_back(static_cast<Stream&>(stream).track());
  const Op op(*this, stream, "copy", track, track == Track::kGpu ? 0 : to_host.size());
  device_->copy_out(inner(stream), to_host, from);
}

void TimedDevice::record(DeviceStream& stream) {
  recording_ = true;
  device_->record(inner(stream));
}

std::unique_ptr<DeviceRecording> TimedDevice::end_recording(DeviceStream& stream) {
  recording_ = false;
  return device_->end_recording(inner(stream));
}

void TimedDevice::replay(DeviceStream& stream, DeviceRecording& recording) {
  const Op op(*this, stream, "step, replayed");
  device_->replay(inner(stream), recording);
}

// Of very much memory that takes minutes, in which a call of the driver says nothing.
std::unique_ptr<DevicePin> TimedDevice::pin(std::span<std::byte> host) {
  std::condition_variable_any ended;
  std::mutex mutex;
  const auto seconds = static_cast<int64_t>(host.size() / kLeastPinnedPerSecond);
  std::optional<std::jthread> signs;
  if (seconds > 0) {
    signs.emplace([&](const std::stop_token& stop) {
      std::unique_lock lock(mutex);
      for (int64_t left = seconds; left > 0 && !stop.stop_requested(); --left) {
        ended.wait_for(lock, stop, std::chrono::seconds(1), [] { return false; });
        moved_on_();
      }
    });
  }
  return device_->pin(host);
}

void TimedDevice::normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                            float* y) {
  const Op op(*this, stream, "norm", {Arg::kRows, rows});
  device_->normalise(inner(stream), norm, x, rows, y);
}

void TimedDevice::add(DeviceStream& stream, float* x, const float* y, int64_t rows, int64_t n) {
  const Op op(*this, stream, "add", {Arg::kRows, rows});
  device_->add(inner(stream), x, y, rows, n);
}

void TimedDevice::relu(DeviceStream& stream, float* x, int64_t rows, int64_t n) {
  const Op op(*this, stream, "relu", {Arg::kRows, rows});
  device_->relu(inner(stream), x, rows, n);
}

void TimedDevice::apply_rope(DeviceStream& stream, const float* cos, const float* sin, float* x,
                             int64_t rows, int heads, int head_dim) {
  const Op op(*this, stream, "rope", {Arg::kRows, rows});
  device_->apply_rope(inner(stream), cos, sin, x, rows, heads, head_dim);
}

void TimedDevice::linear_panels(DeviceStream& stream, const float* x, int64_t rows,
                                const PackedMatrix& w, const float* bias, int64_t first,
                                int64_t end, float* y) {
  const Op op(*this, stream, "product", {Arg::kRows, rows});
  device_->linear_panels(inner(stream), x, rows, w, bias, first, end, y);
}

void TimedDevice::gate_panels(DeviceStream& stream, const float* x, int64_t rows,
                              const PackedMatrix& w, const float* bias, int64_t first, int64_t end,
                              float* gate) {
  const Op op(*this, stream, "product", {Arg::kRows, rows});
  device_->gate_panels(inner(stream), x, rows, w, bias, first, end, gate);
}

void TimedDevice::store_kv(DeviceStream& stream, const KvPageShape& shape,
                           const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                           const float* k, const float* v) {
  const Op op(*this, stream, "store KV");
  device_->store_kv(inner(stream), shape, sequences, count, most_rows, k, v);
}

void TimedDevice::attention(DeviceStream& stream, const KvPageShape& shape,
                            const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                            int heads, float scale, const float* q, float* out) {
  const Op op(*this, stream, "attention");
  device_->attention(inner(stream), shape, sequences, count, most_rows, heads, scale, q, out);
}

void TimedDevice::embed(DeviceStream& stream, const EmbeddingTables& tables, const int32_t* ids,
                        const int32_t* places, int64_t rows, float* x) {
  const Op op(*this, stream, "embed", {Arg::kRows, rows});
  device_->embed(inner(stream), tables, ids, places, rows, x);
}

void TimedDevice::find_best(DeviceStream& stream, const float* logits, int64_t rows, int64_t width,
                            int64_t id, BestToken* best) {
  const Op op(*this, stream, "best token", {Arg::kRows, rows});
  device_->find_best(inner(stream), logits, rows, width, id, best);
}

void TimedDevice::to_half(DeviceStream& stream, const float* x, int64_t count, Half* y) {
  const Op op(*this, stream, "to f16");
  device_->to_half(inner(stream), x, count, y);
}

void TimedDevice::normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                            Half* y) {
  const Op op(*this, stream, "norm", {Arg::kRows, rows});
  device_->normalise(inner(stream), norm, x, rows, y);
}

void TimedDevice::unpack(DeviceStream& stream, const PackedMatrix& w, int64_t first, int64_t end,
                         Half* rows) {
  const Op op(*this, stream, "expand weights");
  device_->unpack(inner(stream), w, first, end, rows);
}

void TimedDevice::multiply(DeviceStream& stream, const HalfProduct& product) {
  const Op op(*this, stream, "product", {Arg::kRows, product.rows});
  device_->multiply(inner(stream), product);
}

void TimedDevice::multiply_packed(DeviceStream& stream, std::span<const PackedProduct> products,
                                  Half* rows) {
  const Op op(*this, stream, "product", {Arg::kRows, products[0].product.rows});
  device_->multiply_packed(inner(stream), products, rows);
}

void TimedDevice::silu_multiply(DeviceStream& stream, const float* gate, const float* up,
                                int64_t rows, int64_t width, int64_t stride, float scale, Half* y) {
  const Op op(*this, stream, "silu", {Arg::kRows, rows});
  device_->silu_multiply(inner(stream), gate, up, rows, width, stride, scale, y);
}

void TimedDevice::attention(DeviceStream& stream, const KvPageShape& shape,
                            const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                            int heads, float scale, const float* q, Half* out) {
  const Op op(*this, stream, "attention");
  device_->attention(inner(stream), shape, sequences, count, most_rows, heads, scale, q, out);
}

}  // namespace headrace
