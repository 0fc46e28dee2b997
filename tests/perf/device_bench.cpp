// How long single ops of a GPU take, in the shapes of OPT-6.7B and Qwen2.5-0.5B. A tool for whoever
// works on them: device_bench MODULE [attention | rows | unpack | products | packed]
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "engine/device/device_module.h"

namespace headrace {
namespace {

class Bench {
 public:
  explicit Bench(Device& device) : device_(device), stream_(device.make_stream()) {}

  std::unique_ptr<DeviceBuffer> memory(size_t bytes) {
    auto buffer = device_.allocate(bytes);
    const std::vector<std::byte> noise = [&] {
      std::vector<std::byte> values(std::min<size_t>(bytes, 64 << 20));
      uint32_t state = 1;
      for (size_t i = 0; i + 1 < values.size(); i += 2) {  // small f16 numbers
        state = state * 1664525u + 1013904223u;
        const uint16_t half = to_half(static_cast<float>(state >> 16) * 1e-6f - 0.03f).bits;
        std::memcpy(values.data() + i, &half, 2);
      }
      return values;
    }();
    for (size_t at = 0; at < bytes; at += noise.size()) {
      const size_t count = std::min(noise.size(), bytes - at);
      device_.copy_in(*stream_, buffer->data() + at, std::span(noise).first(count));
    }
    stream_->synchronize();
    return buffer;
  }

  double time(const char* name, double bytes, double flops, const std::function<void()>& op) {
    using Clock = std::chrono::steady_clock;
    for (int i = 0; i < 3; ++i) op();
    stream_->synchronize();
    int calls = 0;
    const auto begin = Clock::now();
    double seconds = 0;
    while (seconds < 0.03) {
      for (int i = 0; i < 10; ++i, ++calls) op();
      stream_->synchronize();
      seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    seconds /= calls;
    std::printf("%-44s %9.1f us  %7.1f GB/s  %7.1f TFLOP/s\n", name, seconds * 1e6,
                bytes / seconds / 1e9, flops / seconds / 1e12);
    return seconds;
  }

  Device& device_;
  std::unique_ptr<DeviceStream> stream_;
};

void products(Bench& b) {
  struct Shape {
    int64_t outputs, inputs;
  };
  for (const Shape& s :
       {Shape{4096, 4096}, Shape{16384, 4096}, Shape{4096, 16384}, Shape{50272, 4096},
        Shape{4864, 896}, Shape{896, 4864}, Shape{128, 896}, Shape{896, 896}, Shape{151936, 896}}) {
    const int64_t copies = std::max<int64_t>(1, (256 << 20) / (s.outputs * s.inputs * 2));
    const auto w = b.memory(static_cast<size_t>(copies * s.outputs * s.inputs * 2));
    for (const int64_t rows : {1, 16, 64, 4096}) {
      if (rows == 4096 && s.outputs > 20000) continue;
      const auto x = b.memory(static_cast<size_t>(rows * s.inputs * 2));
      const auto y = b.memory(static_cast<size_t>(rows * s.outputs * 4));
      char name[64];
      std::snprintf(name, sizeof name, "multiply %ld x %ld, %ld rows", s.outputs, s.inputs, rows);
      int64_t copy = 0;
      b.time(name,
             static_cast<double>(s.outputs * s.inputs * 2 + rows * (s.inputs * 2 + s.outputs * 4)),
             2.0 * static_cast<double>(s.outputs * s.inputs * rows), [&] {
               b.device_.multiply(*b.stream_,
                                  {.x = x->as<Half>(),
                                   .rows = rows,
                                   .w = w->as<Half>() + copy++ % copies * s.outputs * s.inputs,
                                   .outputs = s.outputs,
                                   .inputs = s.inputs,
                                   .y = y->data(),
                                   .stride = s.outputs});
             });
    }
  }
}

void attention(Bench& b, int64_t count, int64_t rows, int64_t context, int heads, int kv_heads,
               int dim) {
  const KvPageShape shape{kv_heads, dim, KvFormat::kF16};
  const int64_t pages = (context + 15) / 16;
  const auto memory = b.memory(static_cast<size_t>(count * pages) * shape.page_bytes());
  std::vector<std::byte*> table;
  for (int64_t i = 0; i < count * pages; ++i) {
    table.push_back(memory->data() + static_cast<size_t>(i) * shape.page_bytes());
  }
  const auto tables = b.device_.allocate(table.size() * 8);
  b.device_.copy_in(*b.stream_, tables->data(), std::as_bytes(std::span(table)));
  std::vector<AttentionSequence> all;
  for (int64_t i = 0; i < count; ++i) {
    all.push_back({i * rows, rows, context - rows, tables->as<std::byte*>() + i * pages});
  }
  const auto sequences = b.device_.allocate(all.size() * sizeof all[0]);
  b.device_.copy_in(*b.stream_, sequences->data(), std::as_bytes(std::span(all)));
  b.stream_->synchronize();
  const auto q = b.memory(static_cast<size_t>(count * rows * heads * dim) * 4);
  const auto out = b.memory(static_cast<size_t>(count * rows * heads * dim) * 2);
  char name[80];
  std::snprintf(name, sizeof name, "attention %ld x %ld rows of %ld, %d/%d x %d", count, rows,
                context, heads, kv_heads, dim);
  const double seen = static_cast<double>(rows) *
                      (static_cast<double>(context) - static_cast<double>(rows - 1) / 2);
  b.time(name, static_cast<double>(count * pages) * static_cast<double>(shape.page_bytes()),
         4.0 * static_cast<double>(count * heads * dim) * seen, [&] {
           b.device_.attention(*b.stream_, shape, sequences->as<AttentionSequence>(), count, rows,
                               heads, 0.1f, q->as<float>(), out->as<Half>());
         });
  const auto kv = b.memory(static_cast<size_t>(count * rows * kv_heads * dim) * 4);
  b.time("  store_kv", static_cast<double>(count * rows * kv_heads * dim) * 12, 0, [&] {
    b.device_.store_kv(*b.stream_, shape, sequences->as<AttentionSequence>(), count, rows,
                       kv->as<float>(), kv->as<float>());
  });
}

void rows(Bench& b, int64_t count, int64_t n) {
  const auto x = b.memory(static_cast<size_t>(count * n) * 4),
             y = b.memory(static_cast<size_t>(count * n) * 4);
  const auto w = b.memory(static_cast<size_t>(n) * 4);
  const double elements = static_cast<double>(count * n);
  std::printf("%ld rows of %ld\n", count, n);
  b.time("  layer norm to f16", elements * 6, 0, [&] {
    b.device_.normalise(*b.stream_, {n, w->as<float>(), w->as<float>(), 1e-5f}, x->as<float>(),
                        count, y->as<Half>());
  });
  b.time("  rms norm to f16", elements * 6, 0, [&] {
    b.device_.normalise(*b.stream_, {n, w->as<float>(), nullptr, 1e-5f}, x->as<float>(), count,
                        y->as<Half>());
  });
  b.time("  to f16", elements * 6, 0,
         [&] { b.device_.to_half(*b.stream_, x->as<float>(), count * n, y->as<Half>()); });
  b.time("  silu", elements * 10, 0, [&] {
    b.device_.silu_multiply(*b.stream_, x->as<float>(), x->as<float>(), count, n, n, 1.0f,
                            y->as<Half>());
  });
  b.time("  rope", elements * 8, 0, [&] {
    b.device_.apply_rope(*b.stream_, x->as<float>(), x->as<float>(), y->as<float>(), count,
                         static_cast<int>(n / 64), 64);
  });
}

void unpacking(Bench& b) {
  constexpr int64_t kOutputs = 16384, kInputs = 4096;
  const auto rows = b.memory(kOutputs * kInputs * 2);
  for (const DType type : {DType::kF16, DType::kQ8_0, DType::kQ4_K, DType::kG4}) {
    const size_t bytes = panel_bytes(type, kInputs) * kOutputs / 32;
    const auto panels = b.memory(bytes);
    char name[64];
    std::snprintf(name, sizeof name, "unpack 16384 x 4096 of %s", dtype_name(type));
    b.time(name, static_cast<double>(bytes) + kOutputs * kInputs * 2, 0, [&] {
      b.device_.unpack(*b.stream_, {type, kOutputs, kInputs, panels->data()}, 0, kOutputs / 32,
                       rows->as<Half>());
    });
  }
}

// Of a few rows with low-bit weights, the way that the device takes.
void packed(Bench& b) {
  struct Shape {
    int64_t outputs, inputs;
  };
  for (const Shape& s : {Shape{4096, 4096}, Shape{16384, 4096}, Shape{4096, 16384}}) {
    const auto expanded = b.memory(static_cast<size_t>(s.outputs * s.inputs * 2));
    for (const DType type : {DType::kG4, DType::kQ4_K, DType::kQ6_K, DType::kQ8_0}) {
      const size_t bytes = panel_bytes(type, s.inputs) * static_cast<size_t>(s.outputs / 32);
      const size_t copies = std::max<size_t>(1, (256 << 20) / bytes);
      const auto panels = b.memory(copies * bytes);
      for (const int64_t rows : {1, 8, 16, 64}) {
        const auto x = b.memory(static_cast<size_t>(rows * s.inputs * 2));
        const auto y = b.memory(static_cast<size_t>(rows * s.outputs * 4));
        char name[64];
        std::snprintf(name, sizeof name, "%ld x %ld of %s, %ld rows", s.outputs, s.inputs,
                      dtype_name(type), rows);
        size_t copy = 0;
        b.time(name, static_cast<double>(bytes),
               2.0 * static_cast<double>(s.outputs * s.inputs * rows), [&] {
                 const PackedProduct one{
                     {.x = x->as<Half>(),
                      .rows = rows,
                      .outputs = s.outputs,
                      .inputs = s.inputs,
                      .y = y->data(),
                      .stride = s.outputs},
                     {type, s.outputs, s.inputs, panels->data() + copy++ % copies * bytes}};
                 b.device_.multiply_packed(*b.stream_, {&one, 1}, expanded->as<Half>());
               });
      }
    }
  }
}

}  // namespace
}  // namespace headrace

int main(int count, char** argv) {
  using namespace headrace;
  const auto module = open_device_module(argv[1]);
  const auto device = module->open(0);
  Bench bench(*device);
  const auto wants = [&](const char* what) { return count < 3 || !std::strcmp(argv[2], what); };
  if (wants("attention")) {
    attention(bench, 64, 1, 528, 32, 32, 128);
    attention(bench, 32, 1, 528, 32, 32, 128);
    attention(bench, 8, 512, 512, 32, 32, 128);
    attention(bench, 1, 1, 192, 14, 2, 64);
    attention(bench, 64, 1, 192, 14, 2, 64);
    attention(bench, 32, 128, 128, 14, 2, 64);
  }
  if (wants("rows")) {
    rows(bench, 64, 4096);
    rows(bench, 4096, 4096);
    rows(bench, 1, 896);
  }
  if (wants("unpack")) unpacking(bench);
  if (wants("products")) products(bench);
  if (wants("packed")) packed(bench);
}
