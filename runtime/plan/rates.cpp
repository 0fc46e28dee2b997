#include "runtime/plan/rates.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "engine/io/io_queue.h"
#include "engine/ops/attention.h"
#include "engine/ops/linear.h"

namespace headrace {
namespace {

// Of weights or KV pages: more than a core's own caches hold, for a model is more, too.
constexpr uint64_t kSampleBytes = 48 << 20;
constexpr uint64_t kMostCopies = 64;  // of a small matrix
constexpr int64_t kSequencePages = 16;
constexpr int64_t kManyRows = 32;
constexpr int kLeastCalls = 2;
constexpr double kLeastSeconds = 0.02;
constexpr uint64_t kMemoryPiece = 1 << 20;
constexpr double kMemorySeconds = 0.3;
constexpr uint64_t kUnderWay = 16 << 20;    // bytes
constexpr uint64_t kProbeBytes = 64 << 20;  // of a file that is made for it
constexpr uint64_t kMostRead = uint64_t{2} << 30, kMostPasses = 32;
// What comes first may be quicker than what a disk or a limit on it can keep up.
constexpr double kSettleSeconds = 0.2;
constexpr double kProbeSeconds = 1.0;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// What a buffer may have: a budget is taken in whole pages.
uint64_t room(const MemoryBudget& budget) {
  return budget.available() / kIoAlignment * kIoAlignment;
}

// Of one call, once it has been made before: not the best, for what else runs on this machine will
// go on, too.
template <typename F>
double mean_seconds(F&& f) {
  f();
  const auto begin = std::chrono::steady_clock::now();
  for (int calls = 1;; ++calls) {
    f();
    const double time = seconds_since(begin);
    if (calls >= kLeastCalls && time >= kLeastSeconds) return time / calls;
  }
}

// By all threads, as a run writes what it then reads.
void fill(ThreadPool& threads, Buffer& memory) {
  const auto pieces = static_cast<int64_t>((memory.size() + kMemoryPiece - 1) / kMemoryPiece);
  threads.parallel_for(pieces, [&](int64_t i) {
    const uint64_t begin = static_cast<uint64_t>(i) * kMemoryPiece;
    std::memset(memory.data() + begin, 0, std::min(kMemoryPiece, memory.size() - begin));
  });
}

// A matrix that stands for all of its format.
struct Sample {
  const WeightUnit* unit;
  const PlacedMatrix* matrix;
  uint64_t bytes;  // of all
};

// What rows pass: all but an embedding that is not the head, too.
std::vector<Sample> samples_of(const WeightLayout& layout) {
  std::map<DType, Sample> samples;
  const auto take = [&](const WeightUnit& unit, const PlacedMatrix& matrix) {
    Sample& sample = samples[matrix.tensor->dtype];
    if (!sample.matrix || matrix.bytes() > sample.matrix->bytes()) {
      sample.unit = &unit;
      sample.matrix = &matrix;
    }
    sample.bytes += matrix.bytes();
  };
  for (const WeightUnit& unit : layout.units) {
    if (unit.kind == WeightUnit::Kind::kEmbedding) continue;
    for (const PlacedMatrix& matrix : unit.matrices) take(unit, matrix);
  }
  if (layout.range.is_last) {
    const WeightUnit& head = layout.units[layout.head_unit()];
    if (head.kind == WeightUnit::Kind::kEmbedding) take(head, head.matrices.front());
  }
  std::vector<Sample> result;
  for (const auto& [dtype, sample] : samples) result.push_back(sample);
  return result;
}

Rates measure_sample(const Checkpoint& checkpoint, const Sample& sample, const Cpu& cpu, bool int8,
                     MemoryBudget& budget) {
  const PlacedMatrix& placed = *sample.matrix;
  const uint64_t most = std::min(kSampleBytes, room(budget));
  const auto panels = static_cast<int64_t>(
      std::clamp<uint64_t>(most / placed.panel_bytes, 1, static_cast<uint64_t>(placed.panels())));
  const uint64_t bytes = static_cast<uint64_t>(panels) * placed.panel_bytes;
  // Not more of a small model than it has.
  const uint64_t copies =
      std::clamp<uint64_t>(std::min(most, sample.bytes) / bytes, 1, kMostCopies);
  Buffer weights = budget.allocate(copies * bytes, "measuring");
  pack_image(checkpoint, *sample.unit, placed.offset, {weights.data(), bytes}, cpu.threads);
  for (uint64_t i = 1; i < copies; ++i) {
    std::memcpy(weights.data() + i * bytes, weights.data(), bytes);
  }
  PackedMatrix matrix{placed.tensor->dtype, std::min(panels * kPanelRows, placed.tensor->rows),
                      placed.tensor->cols, weights.data()};
  std::vector<float> x(static_cast<size_t>(kManyRows * matrix.cols), 0.5f);
  std::vector<float> y(static_cast<size_t>(kManyRows * matrix.rows));
  std::vector<Int8Block> blocks;
  const int64_t groups = matrix.cols / kInt8Columns;
  if (int8 && has_codes(matrix.dtype)) blocks.resize(int8_blocks(kManyRows) * groups);
  const auto time_of = [&](int64_t rows) {
    return mean_seconds([&] {
      for (uint64_t i = 0; i < copies; ++i) {
        matrix.panels = weights.data() + i * bytes;
        if (blocks.empty()) {
          linear(cpu, x.data(), rows, matrix, nullptr, y.data());
          continue;
        }
        quantise_rows(cpu, x.data(), rows, matrix.cols, blocks.data());
        linear_panels(cpu, {blocks.data(), groups}, rows, matrix, nullptr, 0, matrix.panel_count(),
                      y.data());
      }
    });
  };
  const auto all = static_cast<double>(copies * bytes);
  const double one = time_of(1), many = std::max(one, time_of(kManyRows));
  Rates rates;
  rates.byte_s = one / all;
  rates.byte_row_s = (many - one) / (all * (kManyRows - 1));
  return rates;
}

}  // namespace

void measure_compute(const Checkpoint& checkpoint, const WeightLayout& layout, const Cpu& cpu,
                     bool int8, MemoryBudget& budget, Rates& rates) {
  Rates sum;
  double bytes = 0;
  for (const Sample& sample : samples_of(layout)) {
    const Rates of = measure_sample(checkpoint, sample, cpu, int8, budget);
    const auto weight = static_cast<double>(sample.bytes);
    sum.byte_s += weight * of.byte_s;
    sum.byte_row_s += weight * of.byte_row_s;
    bytes += weight;
  }
  rates.byte_s = sum.byte_s / bytes;
  rates.byte_row_s = sum.byte_row_s / bytes;
}

void measure_attention(const ModelConfig& config, KvFormat format, const Cpu& cpu,
                       MemoryBudget& budget, Rates& rates, uint64_t most_bytes) {
  const KvPageShape shape{config.n_kv_heads, config.head_dim, format};
  const size_t page_bytes = shape.page_bytes();
  const auto pages =
      static_cast<int64_t>(std::max<uint64_t>(1, std::min(most_bytes, room(budget)) / page_bytes));
  Buffer memory = budget.allocate(static_cast<size_t>(pages) * page_bytes, "measuring");
  fill(cpu.threads, memory);
  std::vector<std::byte*> addresses;
  for (int64_t page = 0; page < pages; ++page) {
    addresses.push_back(memory.data() + static_cast<size_t>(page) * page_bytes);
  }
  // A row each for sequences that together have all pages.
  std::vector<AttentionSequence> sequences;
  for (int64_t page = 0; page < pages; page += kSequencePages) {
    const int64_t length = std::min(kSequencePages, pages - page);
    sequences.push_back({static_cast<int64_t>(sequences.size()), 1, length * kPageTokens - 1,
                         addresses.data() + page});
  }
  const size_t floats = sequences.size() * static_cast<size_t>(config.q_rows());
  std::vector<float> q(floats, 0.5f), out(floats);
  const double time = mean_seconds(
      [&] { attention(cpu, shape, sequences, config.n_heads, 1.0f, q.data(), out.data()); });
  rates.attention_s = time / static_cast<double>(pages);
}

double measure_memory(ThreadPool& threads, MemoryBudget& budget, uint64_t most_bytes,
                      const std::function<void()>& begins) {
  const uint64_t bytes = std::min(most_bytes, budget.available() / 2) / kMemoryPiece * kMemoryPiece;
  if (bytes == 0) return 0;
  Buffer memory = budget.allocate(bytes, "measuring");
  fill(threads, memory);
  constexpr uint64_t kWords = kMemoryPiece / sizeof(uint64_t);
  std::vector<uint64_t> sums(bytes / kMemoryPiece);
  if (begins) begins();
  const auto begin = std::chrono::steady_clock::now();
  double seconds = 0;
  uint64_t read = 0;
  while (seconds < kMemorySeconds) {
    threads.parallel_for(std::ssize(sums), [&](int64_t i) {
      const uint64_t* words = memory.as<uint64_t>() + static_cast<uint64_t>(i) * kWords;
      sums[static_cast<size_t>(i)] = std::accumulate(words, words + kWords, uint64_t{0});
    });
    read += bytes;
    seconds = seconds_since(begin);
  }
  // The sums are used, so that they are computed.
  const volatile uint64_t used = std::accumulate(sums.begin(), sums.end(), uint64_t{0});
  static_cast<void>(used);
  return static_cast<double>(read) / seconds;
}

double measure_read(const File& file, MemoryBudget& budget, const ReadPattern& pattern) {
  const uint64_t part = std::min(pattern.part, file.size() / kIoAlignment * kIoAlignment);
  if (part == 0) return 0;
  const uint64_t parts = file.size() / part;
  const uint64_t most =
      std::max<uint64_t>(1, std::min(kMostRead, kMostPasses * file.size()) / part);
  const auto reads =
      std::clamp<size_t>(room(budget) / part, 1, std::max<size_t>(1, kUnderWay / part));
  Buffer memory = budget.allocate(reads * part, "measuring");
  const auto queue = make_io_queue(static_cast<int>(reads));
  std::vector<IoTicket> tickets(reads);
  std::minstd_rand random;
  double time = 0, from_time = 0;
  uint64_t from = 0, done = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (uint64_t started = 0; done < most && time < kProbeSeconds; ++started) {
    const size_t slot = started % reads;
    if (started >= reads) {
      queue->wait(tickets[slot]);
      ++done;
      time = seconds_since(begin);
      if (from == 0 && time >= kSettleSeconds) {
        from = done;
        from_time = time;
      }
    }
    const uint64_t number = pattern.scattered ? random() : started;
    tickets[slot] = queue->read(file, number % parts * part, {memory.data() + slot * part, part});
  }
  for (const IoTicket ticket : tickets) queue->wait(ticket);
  if (done == from) from_time = 0, from = 0;  // a single read took all the time
  return static_cast<double>((done - from) * part) / (time - from_time);
}

std::unique_ptr<File> make_probe(const std::string& directory, uint64_t most,
                                 MemoryBudget& budget) {
  constexpr uint64_t kWritePart = 1 << 20;
  const uint64_t bytes =
      std::clamp<uint64_t>(most / kWritePart * kWritePart, kWritePart, kProbeBytes);
  auto file = std::make_unique<File>(directory, File::Mode::kTemporary);
  file->allocate(bytes);
  const Buffer content = budget.allocate(kWritePart, "measuring");
  for (uint64_t at = 0; at < bytes; at += kWritePart) {
    write_now(*file, at, {content.data(), kWritePart});
  }
  return file;
}

double measure_disk(const std::string& directory, uint64_t most, MemoryBudget& budget,
                    const ReadPattern& pattern) {
  return measure_read(*make_probe(directory, most, budget), budget, pattern);
}

}  // namespace headrace
