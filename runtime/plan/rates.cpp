#include "runtime/plan/rates.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "engine/io/io_queue.h"
#include "engine/ops/linear.h"

namespace headrace {
namespace {

constexpr uint64_t kSampleBytes = 8 << 20;  // of weights
constexpr int64_t kManyRows = 32;
constexpr size_t kReadPart = 1 << 20;
constexpr size_t kMostReads = 16;           // under way
constexpr uint64_t kProbeBytes = 64 << 20;  // of the file, over and over
// What comes first may be quicker than what a disk or a limit on it can keep up.
constexpr double kSettleSeconds = 0.2;
constexpr double kProbeSeconds = 1.0;
constexpr uint64_t kMostPasses = 32;

template <typename F>
double seconds(F&& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

void measure_compute(const Checkpoint& checkpoint, const WeightLayout& layout, const Cpu& cpu,
                     MemoryBudget& budget, Rates& rates) {
  const WeightUnit& unit = layout.units[layout.layer_unit(layout.range.first_layer)];
  const PlacedMatrix& placed = *std::max_element(
      unit.matrices.begin(), unit.matrices.end(),
      [](const PlacedMatrix& a, const PlacedMatrix& b) { return a.bytes() < b.bytes(); });
  const auto panels = static_cast<int64_t>(
      std::clamp<uint64_t>(std::min(kSampleBytes, budget.available()) / placed.panel_bytes, 1,
                           static_cast<uint64_t>(placed.panels())));
  const uint64_t bytes = static_cast<uint64_t>(panels) * placed.panel_bytes;
  Buffer weights = budget.allocate(bytes, "measuring");
  pack_image(checkpoint, unit, placed.offset, {weights.data(), bytes}, cpu.threads);
  const PackedMatrix matrix{placed.tensor->dtype,
                            std::min(panels * kPanelRows, placed.tensor->rows), placed.tensor->cols,
                            weights.data()};
  std::vector<float> x(static_cast<size_t>(kManyRows * matrix.cols), 0.5f);
  std::vector<float> y(static_cast<size_t>(kManyRows * matrix.rows));
  const auto best_of_3 = [&](int64_t rows) {
    double best = INFINITY;
    for (int i = 0; i < 3; ++i) {
      best =
          std::min(best, seconds([&] { linear(cpu, x.data(), rows, matrix, nullptr, y.data()); }));
    }
    return best;
  };
  const double one = best_of_3(1), many = std::max(one, best_of_3(kManyRows));
  rates.byte_s = one / static_cast<double>(bytes);
  rates.byte_row_s = (many - one) / static_cast<double>((kManyRows - 1) * bytes);
}

double measure_read(const File& file, MemoryBudget& budget) {
  const uint64_t bytes = std::min(kProbeBytes, file.size() / kReadPart * kReadPart);
  if (bytes == 0) return 0;
  const uint64_t most = kMostPasses * bytes / kReadPart;
  const auto reads = std::clamp<size_t>(budget.available() / kReadPart, 1, kMostReads);
  Buffer memory = budget.allocate(reads * kReadPart, "measuring");
  const auto queue = make_io_queue(static_cast<int>(reads));
  std::vector<IoTicket> tickets(reads);
  double time = 0, from_time = 0;
  uint64_t from = 0, done = 0;
  const auto begin = std::chrono::steady_clock::now();
  for (uint64_t started = 0; done < most && time < kProbeSeconds; ++started) {
    const size_t slot = started % reads;
    if (started >= reads) {
      queue->wait(tickets[slot]);
      ++done;
      time = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (from == 0 && time >= kSettleSeconds) {
        from = done;
        from_time = time;
      }
    }
    tickets[slot] = queue->read(file, started * kReadPart % bytes,
                                {memory.data() + slot * kReadPart, kReadPart});
  }
  for (const IoTicket ticket : tickets) queue->wait(ticket);
  if (done == from) from_time = 0, from = 0;  // a single read took all the time
  return static_cast<double>((done - from) * kReadPart) / (time - from_time);
}

double measure_disk(const std::string& directory, uint64_t most, MemoryBudget& budget) {
  const uint64_t bytes = std::clamp<uint64_t>(most / kReadPart * kReadPart, kReadPart, kProbeBytes);
  File file(directory, File::Mode::kTemporary);
  file.allocate(bytes);
  {
    const Buffer content = budget.allocate(kReadPart, "measuring");
    for (uint64_t at = 0; at < bytes; at += kReadPart) {
      write_now(file, at, {content.data(), kReadPart});
    }
  }
  return measure_read(file, budget);
}

}  // namespace headrace
