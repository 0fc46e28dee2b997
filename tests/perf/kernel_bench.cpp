// How fast single CPU kernels are, beside what they are measured against: oneDNN's float32 matmul
// (where it was found when this was built) and a plain read of the same memory. One thread; shapes
// of Qwen2.5-Coder-0.5B. kernels.py runs it and prints the ratios.
//
// Weights and pages are taken in turn from more memory than any cache holds, as in a sweep.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "engine/memory/budget.h"
#include "engine/ops/attention.h"
#include "engine/ops/cpu/cpu.h"
#include "engine/ops/linear.h"
#include "engine/ops/packed_matrix.h"

#ifdef HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.hpp>
#endif

namespace headrace {
namespace {

using benchmark::Counter;

constexpr size_t kNoCache = size_t{160} << 20;

struct Shape {
  int64_t rows, cols;  // outputs, inputs
  std::string name() const { return std::to_string(cols) + "x" + std::to_string(rows); }
};
constexpr Shape kShapes[] = {{4864, 896}, {896, 4864}, {896, 896}};
constexpr int64_t kRows[] = {1, 4, 16, 32, 64, 128, 256};
constexpr DType kTypes[] = {DType::kF32,  DType::kF16,  DType::kQ8_0, DType::kQ4_0,
                            DType::kQ5_0, DType::kQ4_K, DType::kQ6_K, DType::kG4};

std::vector<float> some_floats(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 16) * 3e-5f - 1.0f;
  }
  return values;
}

// Halves of ordinary size: no scale is subnormal, infinite or NaN.
void fill(std::span<std::byte> memory) {
  uint32_t state = 1;
  for (size_t i = 0; i + 1 < memory.size(); i += 2) {
    state = state * 1664525u + 1013904223u;
    const auto half = static_cast<uint16_t>(0x2000u | (state >> 16 & 0x8fffu));
    std::memcpy(memory.data() + i, &half, 2);
  }
}

// As a run has its weights and pages.
Buffer some_memory(size_t bytes) {
  static MemoryBudget budget("host memory", uint64_t{4} << 30);
  Buffer memory = budget.allocate(bytes, "benchmark");
  fill({memory.data(), memory.size()});
  return memory;
}

struct OneCore {
  ThreadPool threads{1, 0};
  Cpu cpu{threads, kernels("auto")};
};

void count(benchmark::State& state, double flops, double bytes) {
  state.counters["GFLOP/s"] = Counter(flops * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = Counter(bytes * 1e-9, Counter::kIsIterationInvariantRate);
}

void linear_layer(benchmark::State& state, DType dtype, Shape shape, int64_t rows) {
  OneCore core;
  const size_t bytes = PackedMatrix::packed_bytes(dtype, shape.rows, shape.cols);
  const size_t copies = kNoCache / bytes + 1;
  const Buffer panels = some_memory(copies * bytes);
  const std::vector<float> x = some_floats(rows * shape.cols);
  std::vector<float> y(static_cast<size_t>(rows * shape.rows));
  size_t next = 0;
  for (auto _ : state) {
    const PackedMatrix w{dtype, shape.rows, shape.cols, panels.data() + next * bytes};
    linear(core.cpu, x.data(), rows, w, nullptr, y.data());
    benchmark::DoNotOptimize(y.data());
    next = (next + 1) % copies;
  }
  count(state, 2.0 * static_cast<double>(rows * shape.rows * shape.cols),
        static_cast<double>(bytes));
}

// The same in integers, with x quantised as once for all matrices that read it: outside the time.
void int8_layer(benchmark::State& state, DType dtype, Shape shape, int64_t rows) {
  OneCore core;
  const size_t bytes = PackedMatrix::packed_bytes(dtype, shape.rows, shape.cols);
  const size_t copies = kNoCache / bytes + 1;
  const Buffer panels = some_memory(copies * bytes);
  const std::vector<float> x = some_floats(rows * shape.cols);
  const int64_t groups = shape.cols / kInt8Columns;
  std::vector<Int8Block> blocks(static_cast<size_t>(int8_blocks(rows) * groups));
  quantise_rows(core.cpu, x.data(), rows, shape.cols, blocks.data());
  std::vector<float> y(static_cast<size_t>(rows * shape.rows));
  size_t next = 0;
  for (auto _ : state) {
    const PackedMatrix w{dtype, shape.rows, shape.cols, panels.data() + next * bytes};
    linear_panels(core.cpu, {blocks.data(), groups}, rows, w, nullptr, 0, w.panel_count(),
                  y.data());
    benchmark::DoNotOptimize(y.data());
    next = (next + 1) % copies;
  }
  count(state, 2.0 * static_cast<double>(rows * shape.rows * shape.cols),
        static_cast<double>(bytes));
}

void quantise(benchmark::State& state, Shape shape, int64_t rows) {
  OneCore core;
  const std::vector<float> x = some_floats(rows * shape.cols);
  std::vector<Int8Block> blocks(static_cast<size_t>(int8_blocks(rows) * shape.cols / kInt8Columns));
  for (auto _ : state) {
    quantise_rows(core.cpu, x.data(), rows, shape.cols, blocks.data());
    benchmark::DoNotOptimize(blocks.data());
  }
  count(state, 0, static_cast<double>(x.size() * sizeof(float)));
}

void plain_read(benchmark::State& state, size_t bytes) {
  std::vector<float> memory = some_floats(static_cast<int64_t>(bytes / sizeof(float)));
  for (auto _ : state) {
    float lanes[64] = {};
    for (size_t i = 0; i + 64 <= memory.size(); i += 64) {
      for (size_t j = 0; j < 64; ++j) lanes[j] += memory[i + j];
    }
    benchmark::DoNotOptimize(std::accumulate(std::begin(lanes), std::end(lanes), 0.0f));
  }
  count(state, 0, static_cast<double>(bytes));
}

// One layer's pages of `sequences` sequences, here and there in memory, as a KV cache has them.
struct Pages {
  Pages(const KvPageShape& shape, int sequences, int64_t tokens)
      : each((tokens + kPageTokens - 1) / kPageTokens),
        count(static_cast<size_t>(sequences * each)),
        memory(some_memory(std::max(kNoCache, count * shape.page_bytes()))) {
    std::vector<size_t> order(memory.size() / shape.page_bytes());
    std::iota(order.begin(), order.end(), size_t{0});
    uint64_t random = 1;
    for (size_t i = order.size(); i > 1; --i) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[i - 1], order[(random >> 33) % i]);
    }
    for (size_t i = 0; i < count; ++i) {
      pages.push_back(memory.data() + order[i] * shape.page_bytes());
    }
    for (int s = 0; s < sequences; ++s) {
      rows.push_back({s, 1, tokens - 1, pages.data() + s * each});
    }
  }
  int64_t each;  // pages of a sequence
  size_t count;
  Buffer memory;
  std::vector<std::byte*> pages;
  std::vector<AttentionSequence> rows;
};

constexpr int kHeads = 14, kKvHeads = 2, kHeadDim = 64, kSequences = 16;
constexpr int64_t kContext = 4096;

void decode_attention(benchmark::State& state, KvFormat format) {
  OneCore core;
  const KvPageShape shape{kKvHeads, kHeadDim, format};
  const Pages pages(shape, kSequences, kContext);
  const std::vector<float> q = some_floats(kSequences * kHeads * kHeadDim);
  std::vector<float> out(q.size());
  for (auto _ : state) {
    attention(core.cpu, shape, pages.rows, kHeads, 0.125f, q.data(), out.data());
    benchmark::DoNotOptimize(out.data());
  }
  count(state, 4.0 * kSequences * kHeads * kHeadDim * static_cast<double>(kContext),
        static_cast<double>(pages.pages.size() * shape.page_bytes()));
}

// What decode_attention reads, page by page.
void read_pages(benchmark::State& state, KvFormat format) {
  const KvPageShape shape{kKvHeads, kHeadDim, format};
  const Pages pages(shape, kSequences, kContext);
  for (auto _ : state) {
    uint32_t lanes[64] = {};
    for (const std::byte* page : pages.pages) {
      for (size_t i = 0; i + sizeof lanes <= shape.page_bytes(); i += sizeof lanes) {
        uint32_t words[64];
        std::memcpy(words, page + i, sizeof words);
        for (size_t j = 0; j < 64; ++j) lanes[j] += words[j];
      }
    }
    benchmark::DoNotOptimize(std::accumulate(std::begin(lanes), std::end(lanes), 0u));
  }
  count(state, 0, static_cast<double>(pages.pages.size() * shape.page_bytes()));
}

// All rows of a prompt at once.
void prefill_attention(benchmark::State& state, int64_t tokens) {
  OneCore core;
  const KvPageShape shape{kKvHeads, kHeadDim, KvFormat::kF16};
  Pages pages(shape, 1, tokens);
  pages.rows = {{0, tokens, 0, pages.pages.data()}};
  const std::vector<float> q = some_floats(tokens * kHeads * kHeadDim);
  std::vector<float> out(q.size());
  for (auto _ : state) {
    attention(core.cpu, shape, pages.rows, kHeads, 0.125f, q.data(), out.data());
    benchmark::DoNotOptimize(out.data());
  }
  count(state, 2.0 * kHeads * kHeadDim * static_cast<double>(tokens * (tokens + 1)), 0);
}

#ifdef HAVE_ONEDNN
// x [rows][cols] times weights in whatever layout the library likes best for them.
void onednn(benchmark::State& state, Shape shape, int64_t rows) {
  using dnnl::memory;
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto f32 = memory::data_type::f32;
  const memory::desc x_desc({rows, shape.cols}, f32, memory::format_tag::ab);
  const memory::desc y_desc({rows, shape.rows}, f32, memory::format_tag::ab);
  const memory::desc any({shape.cols, shape.rows}, f32, memory::format_tag::any);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc chosen(engine, x_desc, any, y_desc);
#else
  const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(x_desc, any, y_desc), engine);
#endif
  const dnnl::matmul matmul(chosen);
  const size_t bytes = chosen.weights_desc().get_size();
  std::vector<memory> weights;
  for (size_t copy = 0; copy <= kNoCache / bytes; ++copy) {
    weights.emplace_back(chosen.weights_desc(), engine);
    std::fill_n(static_cast<float*>(weights.back().get_data_handle()), bytes / 4, 0.5f);
  }
  memory x(x_desc, engine), y(y_desc, engine);
  const std::vector<float> values = some_floats(rows * shape.cols);
  std::copy(values.begin(), values.end(), static_cast<float*>(x.get_data_handle()));
  size_t next = 0;
  for (auto _ : state) {
    matmul.execute(stream,
                   {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, weights[next]}, {DNNL_ARG_DST, y}});
    stream.wait();
    next = (next + 1) % weights.size();
  }
  count(state, 2.0 * static_cast<double>(rows * shape.rows * shape.cols),
        static_cast<double>(bytes));
}
#endif

void register_all() {
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run);
  };
  add("read", [](benchmark::State& state) { plain_read(state, kNoCache); });
  for (const Shape& shape : kShapes) {
    for (const int64_t rows : kRows) {
      const std::string place = shape.name() + "/" + std::to_string(rows);
      add("quantise/" + place, [=](benchmark::State& state) { quantise(state, shape, rows); });
#ifdef HAVE_ONEDNN
      add("onednn/" + place, [=](benchmark::State& state) { onednn(state, shape, rows); });
#endif
      for (const DType dtype : kTypes) {
        if (shape.cols % dtype_info(dtype).block_elements != 0) continue;
        add(std::string(dtype_name(dtype)) + "/" + place,
            [=](benchmark::State& state) { linear_layer(state, dtype, shape, rows); });
        if (!has_codes(dtype)) continue;
        add("int8/" + std::string(dtype_name(dtype)) + "/" + place,
            [=](benchmark::State& state) { int8_layer(state, dtype, shape, rows); });
      }
    }
  }
  for (const KvFormat format : {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4}) {
    const std::string name = kv_format_name(format);
    add("decode/" + name, [=](benchmark::State& state) { decode_attention(state, format); });
    add("pages/" + name, [=](benchmark::State& state) { read_pages(state, format); });
  }
  for (const int64_t tokens : {128, 1024}) {
    add("prefill/" + std::to_string(tokens),
        [=](benchmark::State& state) { prefill_attention(state, tokens); });
  }
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  headrace::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
}
