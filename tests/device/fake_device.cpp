#include "tests/device/fake_device.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "engine/error.h"
#include "engine/ops/cuda/row_blocks.h"
#include "engine/ops/linear.h"
#include "engine/ops/vector_ops.h"

namespace headrace::test {
namespace {

constexpr std::byte kPoison{0xFF};  // NaN

// A kernel does no more rows than that.
void check_rows(const AttentionSequence* sequences, int64_t count, int64_t most_rows) {
  for (int64_t i = 0; i < count; ++i) {
    if (sequences[i].rows > most_rows) throw std::logic_error("a sequence has too many rows");
  }
}

}  // namespace

bool FakeDevice::Uses::any_in(std::span<const std::byte> memory) const {
  const std::byte *const begin = memory.data(), *const end = begin + memory.size();
  return std::any_of(places.begin(), places.end(),
                     [&](const void* p) { return begin <= p && p < end; }) ||
         std::any_of(spans.begin(), spans.end(), [&](const auto& span) {
           return span.data() < end && begin < span.data() + span.size();
         });
}

// Nothing that a destructor could throw.
void FakeDevice::AllWork::gone(std::span<const std::byte> memory, const char* how) {
  ++whole_waits;
  while (hangs) ::pause();
  for (const auto& queue : queues) {
    for (const Work& work : *queue) {
      if (!checks || !work.uses.any_in(memory)) continue;
      std::fprintf(stderr, "fake device: memory is %s while what is queued uses it\n", how);
      std::abort();
    }
  }
}

class FakeDevice::Memory final : public DeviceBuffer {
 public:
  Memory(std::shared_ptr<AllWork> work, size_t bytes)
      : work_(std::move(work)),
        bytes_(static_cast<std::byte*>(std::calloc(bytes + 1, 1))),
        size_(bytes) {
    if (!bytes_) throw std::bad_alloc();
    poison();
  }
  ~Memory() override {
    work_->gone({bytes_, size_}, "freed");
    poison();
    std::free(bytes_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data() override { return bytes_; }
  size_t size() const override { return size_; }

 private:
  // All of it, but only both ends of what is very large: tests use little of that, and the system
  // gives no memory for the rest.
  void poison() {
    const size_t some = size_ <= size_t{16} << 20 ? size_ : size_t{1} << 20;
    std::fill_n(bytes_, some, kPoison);
    std::fill_n(bytes_ + (size_ - some), some, kPoison);
  }

  const std::shared_ptr<AllWork> work_;
  std::byte* bytes_;
  size_t size_;
};

class FakeDevice::Stream final : public DeviceStream {
 public:
  Stream(FakeDevice& device, std::shared_ptr<Queue> work)
      : device_(device), work_(std::move(work)) {}
  void synchronize() override {
    device_.host_waits([this] { return work_->empty(); });
  }
  Queue& work() { return *work_; }

 private:
  FakeDevice& device_;
  std::shared_ptr<Queue> work_;
};

class FakeDevice::Event final : public DeviceEvent {
 public:
  explicit Event(FakeDevice& device) : device_(device) {}
  void synchronize() override {
    if (device_.fault_ == Fault::kHostDoesNotWait) return;
    device_.host_waits(place());
  }
  // Whether the place of now is reached.
  std::function<bool()> place() const {
    return [reached = reached_, place = recorded_] { return *reached >= place; };
  }
  std::function<void()> next_place() {
    return [&device = device_, reached = reached_, time = time_, place = ++recorded_] {
      *reached = std::max(*reached, place);
      *time = device.time_;
    };
  }
  bool is_reached() override { return place()(); }
  bool wait_a_moment() override {
    if (device_.fault_ == Fault::kHostDoesNotWait) return true;
    device_.check_there();
    for (uint64_t left = device_.random_() % 16; left > 0 && !is_reached(); --left) {
      if (!device_.run_one()) throw std::logic_error("what is waited for can never be done");
    }
    return is_reached();
  }
  int64_t since(DeviceEvent& earlier) override {
    return *time_ - *static_cast<Event&>(earlier).time_;
  }

 private:
  FakeDevice& device_;
  int64_t recorded_ = 0;
  std::shared_ptr<int64_t> reached_ = std::make_shared<int64_t>(0);
  std::shared_ptr<int64_t> time_ = std::make_shared<int64_t>(0);
};

class FakeDevice::Recording final : public DeviceRecording {
 public:
  DeviceStream* stream = nullptr;
  std::vector<Work> work;
};

FakeDevice::~FakeDevice() { work_->queues.clear(); }
FakeDevice::FakeDevice(uint64_t seed, Fault fault) : random_(seed), fault_(fault) {
  work_->checks = fault == Fault::kNone;
}

std::unique_ptr<DeviceBuffer> FakeDevice::allocate(size_t bytes) {
  check_not_recording("allocating");
  allocated_ += bytes;
  ++work_->whole_waits;
  return std::make_unique<Memory>(work_, bytes);
}

std::unique_ptr<DeviceStream> FakeDevice::make_stream(Track) {
  work_->queues.push_back(std::make_shared<Queue>());
  return std::make_unique<Stream>(*this, work_->queues.back());
}

std::unique_ptr<DeviceEvent> FakeDevice::make_event() { return std::make_unique<Event>(*this); }

void FakeDevice::record(DeviceStream& stream, DeviceEvent& event) {
  check_not_recording("an event");
  queue(stream, {}, static_cast<Event&>(event).next_place());
}

void FakeDevice::wait(DeviceStream& stream, DeviceEvent& event) {
  check_not_recording("a wait");
  if (fault_ == Fault::kStreamsDoNotWait) return;
  queue(
      stream, {}, [] {}, static_cast<Event&>(event).place());
}

void FakeDevice::hold(DeviceStream& stream) {
  held_ = true;
  queue(
      stream, {}, [] {}, [this] { return !held_; });
}

void FakeDevice::queue(DeviceStream& stream, Uses uses, std::function<void()> run,
                       std::function<bool()> ready) {
  check_there();
  Work work{std::move(ready), std::move(run), std::move(uses)};
  if (recording_ && recording_->stream == &stream) {
    recording_->work.push_back(std::move(work));
    return;
  }
  static_cast<Stream&>(stream).work().push_back(std::move(work));
  if (random_() % 4 != 0) return;
  for (uint64_t left = random_() % 8; left > 0 && run_one(); --left) {
  }
}

bool FakeDevice::run_one() {
  std::vector<Queue*> ready;
  for (const auto& queue : work_->queues) {
    if (queue->empty()) continue;
    const Work& first = queue->front();
    if (!first.ready || first.ready()) ready.push_back(queue.get());
  }
  if (ready.empty()) return false;
  Queue& chosen = *ready[random_() % ready.size()];
  const Work work = std::move(chosen.front());
  chosen.pop_front();
  time_ += 1000;
  work.run();
  return true;
}

void FakeDevice::run_until(const std::function<bool()>& done) {
  while (!done()) {
    if (!run_one()) throw std::logic_error("what is waited for can never be done");
  }
}

void FakeDevice::host_waits(const std::function<bool()>& done) {
  check_not_recording("waiting");
  if (waits_left_ <= 0) {  // nothing more is done
    is_lost_ = true;
    work_->hangs = hangs_;
    for (const auto& queue : work_->queues) queue->clear();
  }
  check_there();
  --waits_left_;
  run_until(done);
}

void FakeDevice::check_there() const {
  if (is_lost_) throw DeviceLost("the fake GPU was lost; run again with --resume");
}

void FakeDevice::check_not_recording(const char* what) const {
  if (recording_) throw std::logic_error(what + std::string(" while ops are recorded"));
}

void FakeDevice::copy_in(DeviceStream& stream, std::byte* to,
                         std::span<const std::byte> from_host) {
  check_not_recording("a copy");
  check_pinned(from_host);
  queue(stream, {{to}, {from_host}}, [=] { std::memcpy(to, from_host.data(), from_host.size()); });
}

void FakeDevice::copy_out(DeviceStream& stream, std::span<std::byte> to_host,
                          const std::byte* from) {
  check_not_recording("a copy");
  check_pinned(to_host);
  queue(stream, {{from}, {to_host}}, [=] { std::memcpy(to_host.data(), from, to_host.size()); });
}

void FakeDevice::record(DeviceStream& stream) {
  recording_ = std::make_unique<Recording>();
  recording_->stream = &stream;
}

std::unique_ptr<DeviceRecording> FakeDevice::end_recording(DeviceStream&) {
  return std::move(recording_);
}

void FakeDevice::replay(DeviceStream& stream, DeviceRecording& recording) {
  for (const Work& work : static_cast<Recording&>(recording).work) {
    queue(stream, work.uses, work.run);
  }
}

class FakeDevice::Pin final : public DevicePin {
 public:
  Pin(FakeDevice& device, std::span<std::byte> host) : device_(device), host_(host) {
    device_.pinned_.push_back(host);
    ++device_.work_->whole_waits;
  }
  ~Pin() override {
    device_.work_->gone(host_, "no longer pinned");
    std::erase_if(device_.pinned_,
                  [this](const auto& other) { return other.data() == host_.data(); });
  }

 private:
  FakeDevice& device_;
  std::span<std::byte> host_;
};

std::unique_ptr<DevicePin> FakeDevice::pin(std::span<std::byte> host) {
  check_not_recording("pinning");
  return std::make_unique<Pin>(*this, host);
}

void FakeDevice::check_pinned(std::span<const std::byte> host) {
  bool is_pinned = host.empty();
  const std::byte *const begin = host.data(), *const end = begin + host.size();
  for (const auto& pinned : pinned_) {
    const std::byte *const first = pinned.data(), *const last = first + pinned.size();
    const bool overlaps = begin < last && first < end, is_inside = first <= begin && end <= last;
    if (overlaps && !is_inside) throw ResourceMissing("a copy of memory that is pinned in part");
    is_pinned = is_pinned || is_inside;
  }
  if (is_pinned) return;
  if (refuses_unpinned_ && attentions_ > 0) throw std::logic_error("a copy of unpinned memory");
  unpinned_ += host.size();
}

void FakeDevice::normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                           float* y) {
  queue(stream, {{norm.weight, norm.bias, x, y}, {}},
        [=, this] { cpu_ops_.normalise(norm, x, rows, y); });
}

void FakeDevice::add(DeviceStream& stream, float* x, const float* y, int64_t rows, int64_t n) {
  queue(stream, {{x, y}, {}}, [=, this] { headrace::add(cpu_, x, y, rows, n); });
}

void FakeDevice::relu(DeviceStream& stream, float* x, int64_t rows, int64_t n) {
  queue(stream, {{x}, {}}, [=, this] { headrace::relu(cpu_, x, rows, n); });
}

void FakeDevice::apply_rope(DeviceStream& stream, const float* cos, const float* sin, float* x,
                            int64_t rows, int heads, int head_dim) {
  const int half = head_dim / 2;
  queue(stream, {{cos, sin, x}, {}}, [=] {
    for (int64_t row = 0; row < rows; ++row) {
      for (int head = 0; head < heads; ++head) {
        float* const at = x + (row * heads + head) * head_dim;
        for (int i = 0; i < half; ++i) {
          rotate_pair(at, half, i, cos[row * half + i], sin[row * half + i]);
        }
      }
    }
  });
}

void FakeDevice::linear_panels(DeviceStream& stream, const float* x, int64_t rows,
                               const PackedMatrix& w, const float* bias, int64_t first, int64_t end,
                               float* y) {
  queue(stream, {{x, w.panels, w.rest, bias, y}, {}},
        [=, this] { headrace::linear_panels(cpu_, x, rows, w, bias, first, end, y); });
}

void FakeDevice::gate_panels(DeviceStream& stream, const float* x, int64_t rows,
                             const PackedMatrix& w, const float* bias, int64_t first, int64_t end,
                             float* gate) {
  queue(stream, {{x, w.panels, w.rest, bias, gate}, {}},
        [=, this] { headrace::gate_panels(cpu_, x, rows, w, bias, first, end, gate); });
}

void FakeDevice::store_kv(DeviceStream& stream, const KvPageShape& shape,
                          const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                          const float* k, const float* v) {
  queue(stream, {{sequences, k, v}, {}}, [=, this] {
    check_rows(sequences, count, most_rows);
    headrace::store_kv(cpu_, shape, {sequences, static_cast<size_t>(count)}, k, v);
  });
}

void FakeDevice::attention(DeviceStream& stream, const KvPageShape& shape,
                           const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                           int heads, float scale, const float* q, float* out) {
  ++attentions_;
  queue(stream, {{sequences, q, out}, {}}, [=, this] {
    check_rows(sequences, count, most_rows);
    headrace::attention(cpu_, shape, {sequences, static_cast<size_t>(count)}, heads, scale, q, out);
  });
}

void FakeDevice::embed(DeviceStream& stream, const EmbeddingTables& tables, const int32_t* ids,
                       const int32_t* places, int64_t rows, float* x) {
  queue(stream, {{tables.tokens.panels, tables.positions.panels, ids, places, x}, {}}, [=, this] {
    const auto row_of = [&](const PackedMatrix& table, int64_t row) {
      std::vector<float> values(static_cast<size_t>(table.cols));
      if (!table.half_rows) unpack_row(cpu_, table, row, values.data());
      for (int64_t i = 0; i < table.cols; ++i) {
        float& value = values[static_cast<size_t>(i)];
        if (table.half_rows) value = f16_at(table.panels + (row * table.cols + i) * 2);
        if (tables.rounded) value = f16_to_f32(headrace::to_half(value).bits);
      }
      return values;
    };
    const int64_t n = tables.tokens.cols;
    for (int64_t row = 0; row < rows; ++row) {
      const auto token = row_of(tables.tokens, ids[row]);
      std::copy(token.begin(), token.end(), x + row * n);
      if (!places) continue;
      const auto position = row_of(tables.positions, places[row]);
      std::transform(position.begin(), position.end(), x + row * n, x + row * n, std::plus<>());
    }
  });
}

void FakeDevice::find_best(DeviceStream& stream, const float* logits, int64_t rows, int64_t width,
                           int64_t id, BestToken* best) {
  queue(stream, {{logits, best}, {}}, [=] {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < width; ++i) {
        const float logit = logits[row * width + i];
        best[row].has_nan |= std::isnan(logit);
        if (!(logit > best[row].logit)) continue;
        best[row].logit = logit;
        best[row].token = static_cast<int32_t>(id + i);
      }
    }
  });
}

void FakeDevice::to_half(DeviceStream& stream, const float* x, int64_t count, Half* y) {
  queue(stream, {{x, y}, {}}, [=] { std::transform(x, x + count, y, headrace::to_half); });
}

void FakeDevice::normalise(DeviceStream& stream, const RowNorm& norm, const float* x, int64_t rows,
                           Half* y) {
  queue(stream, {{norm.weight, norm.bias, x, y}, {}}, [=, this] {
    std::vector<float> floats(static_cast<size_t>(rows * norm.n));
    cpu_ops_.normalise(norm, x, rows, floats.data());
    std::transform(floats.begin(), floats.end(), y, headrace::to_half);
  });
}

void FakeDevice::unpack(DeviceStream& stream, const PackedMatrix& w, int64_t first, int64_t end,
                        Half* rows) {
  queue(stream, {{w.panels, rows}, {}}, [=, this] {
    std::vector<float> row(static_cast<size_t>(w.cols));
    Half* to = rows;
    for (int64_t i = first * kPanelRows; i < std::min(end * kPanelRows, w.rows); ++i) {
      unpack_row(cpu_, w, i, row.data());
      to = std::transform(row.begin(), row.end(), to, headrace::to_half);
    }
  });
}

void FakeDevice::multiply(DeviceStream& stream, const HalfProduct& product) {
  queue(stream, {{product.x, product.w, product.bias, product.y}, {}}, [p = product] {
    for (int64_t row = 0; row < p.rows; ++row) {
      for (int64_t of_all = 0; of_all < p.count * p.outputs; ++of_all) {
        const int64_t i = of_all / p.outputs, n = of_all % p.outputs;
        const Half* const w = p.w + i * p.w_apart;
        float sum = 0;
        for (int64_t k = 0; k < p.inputs; ++k) {
          sum = std::fma(f16_to_f32(p.x[row * p.inputs + k].bits),
                         f16_to_f32(w[n * p.inputs + k].bits), sum);
        }
        const float y = p.scale * sum + (p.bias ? p.bias[i * p.bias_apart + n] : 0.0f);
        const int64_t at = i * p.y_apart + row * p.stride + n;
        switch (p.result) {
          case HalfProduct::Result::kFloat:
            static_cast<float*>(p.y)[at] = y;
            break;
          case HalfProduct::Result::kAdded:
            static_cast<float*>(p.y)[at] += y;
            break;
          case HalfProduct::Result::kReluHalf:
            static_cast<Half*>(p.y)[at] = headrace::to_half(std::max(0.0f, y));
            break;
        }
      }
    }
  });
}

void FakeDevice::silu_multiply(DeviceStream& stream, const float* gate, const float* up,
                               int64_t rows, int64_t width, int64_t stride, float scale, Half* y) {
  queue(stream, {{gate, up, y}, {}}, [=] {
    for (int64_t i = 0; i < rows * width; ++i) {
      const int64_t at = i / width * stride + i % width;
      y[at] = headrace::to_half(scale * silu_multiply_of(gate[at], up[i]));
    }
  });
}

void FakeDevice::attention(DeviceStream& stream, const KvPageShape& shape,
                           const AttentionSequence* sequences, int64_t count, int64_t most_rows,
                           int heads, float scale, const float* q, Half* out) {
  ++attentions_;
  queue(stream, {{sequences, q, out}, {}}, [=, this] {
    check_rows(sequences, count, most_rows);
    const std::span all(sequences, static_cast<size_t>(count));
    int64_t rows = 0;
    for (const AttentionSequence& s : all) rows = std::max(rows, s.first_row + s.rows);
    std::vector<float> floats(static_cast<size_t>(rows * heads * shape.head_dim));
    headrace::attention(cpu_, shape, all, heads, scale, q, floats.data());
    for (const AttentionSequence& s : all) {
      const int64_t begin = s.first_row * heads * shape.head_dim;
      std::transform(floats.data() + begin, floats.data() + begin + s.rows * heads * shape.head_dim,
                     out + begin, headrace::to_half);
    }
  });
}

}  // namespace headrace::test
