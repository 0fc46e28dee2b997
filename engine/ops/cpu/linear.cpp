#include "engine/ops/linear.h"

#include <algorithm>
#include <span>
#include <vector>

#include "engine/half.h"
#include "engine/ops/cpu/cpu.h"

namespace headrace {
namespace {

constexpr int kRowBlock = 256;  // rows of x per pass over a panel: its accumulators are 32 KiB
constexpr size_t kUnpackedRows = 64;  // of a panel, by one thread
constexpr int kTileK = 128;           // columns expanded at a time: 16 KiB of float weights

// Rows of x that a core's second cache does not keep beside the weights are taken kBlockK columns
// at a time, for several panels.
constexpr int64_t kKeptBytes = 768 << 10;
constexpr int kBlockK = 4 * kTileK;
constexpr int kMostPanels = 4;

// Expands columns [k, k + count) of a panel, or points into it where it holds floats already.
const float* expand(const Kernels& kernels, const PackedMatrix& w, const PanelLayout& layout,
                    const std::byte* panel, int64_t k, int count, float* scratch) {
  if (w.dtype == DType::kF32) return reinterpret_cast<const float*>(panel) + k * kPanelRows;
  const auto expand_chunk = kernels.expand[static_cast<int>(w.dtype)];
  const std::byte* block = panel + static_cast<size_t>(k / layout.block_k) * layout.block_bytes;
  if (layout.block_k == 1) {
    expand_chunk(block, 0, count, scratch);
    return scratch;
  }
  for (int done = 0; done < count; done += kChunkK) {
    const int64_t at = k + done;
    block = panel + static_cast<size_t>(at / layout.block_k) * layout.block_bytes;
    expand_chunk(block, static_cast<int>(at % layout.block_k) / kChunkK, kChunkK,
                 scratch + done * kPanelRows);
  }
  return scratch;
}

// acc[rows][32] += columns [first, end) of x[rows][w.cols] times those of the panel, or all of
// them.
void multiply_panel(const Kernels& kernels, const float* x, int rows, const PackedMatrix& w,
                    const std::byte* panel, int64_t first, int64_t end, float* acc) {
  if (rows <= kernels.few_rows) {
    return kernels.multiply_panel[static_cast<int>(w.dtype)](panel, w.cols, x, w.cols, rows, acc);
  }
  const PanelLayout layout = panel_layout(w.dtype);
  const size_t tile_bytes = w.panel_bytes() * kTileK / static_cast<size_t>(w.cols);
  alignas(64) float scratch[kTileK * kPanelRows];
  for (int64_t k = first; k < end; k += kTileK) {
    const int count = static_cast<int>(std::min<int64_t>(kTileK, end - k));
    const float* const tile = expand(kernels, w, layout, panel, k, count, scratch);
    kernels.multiply(x + k, w.cols, rows, tile, count, acc,
                     {panel + static_cast<size_t>(k / kTileK + 1) * tile_bytes, tile_bytes});
  }
}

// The same of quantised rows.
void multiply_panel(const Kernels& kernels, const Int8Rows& x, int rows, const PackedMatrix& w,
                    const std::byte* panel, int64_t first, int64_t end, float* acc) {
  kernels.int8.multiply_panel[static_cast<int>(w.dtype)](panel, first / kInt8Columns,
                                                         end / kInt8Columns, x, rows, acc);
}

const float* rows_from(const float* x, int64_t row, const PackedMatrix& w) {
  return x + row * w.cols;
}
Int8Rows rows_from(const Int8Rows& x, int64_t row, const PackedMatrix&) { return x.from(row); }

int64_t bytes_of_row(const float*, const PackedMatrix& w) {
  return w.cols * static_cast<int64_t>(sizeof(float));
}
int64_t bytes_of_row(const Int8Rows& x, const PackedMatrix&) {
  return x.groups * static_cast<int64_t>(sizeof(Int8Block)) / kInt8Rows;
}

// Which panels and columns a thread takes at once.
struct Blocks {
  int64_t panels = 1;
  int64_t columns = 0;
};

template <typename X>
Blocks blocks_of(const Cpu& cpu, const X& x, int64_t rows, const PackedMatrix& w, int64_t panels) {
  if (std::min<int64_t>(rows, kRowBlock) * bytes_of_row(x, w) <= kKeptBytes) return {1, w.cols};
  // Enough of them for every thread to have something to do until the end.
  const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  const int64_t for_each = panels * row_blocks / (4 * cpu.threads.threads());
  return {std::clamp<int64_t>(for_each, 1, kMostPanels), kBlockK};
}

// For each row m of x and panel of [first, end): finish(m, n, width, acc) gets the sums of outputs
// n .. n + width - 1 and may change them.
template <typename X, typename Finish>
void for_panels(const Cpu& cpu, const X& x, int64_t rows, const PackedMatrix& w, int64_t first,
                int64_t end, Finish finish) {
  const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  const Blocks block = blocks_of(cpu, x, rows, w, end - first);
  const int64_t groups = (end - first + block.panels - 1) / block.panels;

  cpu.threads.parallel_for(groups * row_blocks, [&](int64_t item) {
    const int64_t first_panel = first + item % groups * block.panels;
    const int64_t panels = std::min(block.panels, end - first_panel);
    const int64_t first_row = item / groups * kRowBlock;
    const int block_rows = static_cast<int>(std::min<int64_t>(kRowBlock, rows - first_row));
    const int64_t columns = block_rows <= cpu.kernels.few_rows ? w.cols : block.columns;

    alignas(64) float sums[kMostPanels][kRowBlock * kPanelRows];
    for (int64_t p = 0; p < panels; ++p) std::fill_n(sums[p], block_rows * kPanelRows, 0.0f);
    for (int64_t k = 0; k < w.cols; k += columns) {
      for (int64_t p = 0; p < panels; ++p) {
        multiply_panel(cpu.kernels, rows_from(x, first_row, w), block_rows, w,
                       w.panel(first_panel + p), k, std::min(k + columns, w.cols), sums[p]);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t n = (first_panel + p) * kPanelRows;
      const int width = static_cast<int>(std::min<int64_t>(kPanelRows, w.rows - n));
      for (int m = 0; m < block_rows; ++m) {
        finish(first_row + m, n, width, sums[p] + m * kPanelRows);
      }
    }
  });
}

// `bias` is null, or of all outputs.
void add_bias(const float* bias, int64_t n, int width, float* acc) {
  if (!bias) return;
  for (int i = 0; i < width; ++i) acc[i] += bias[n + i];
}

// Rows of one panel.
void unpack_of_panel(const Kernels& kernels, const PackedMatrix& w, std::span<const RowTarget> rows,
                     const Unpacking& unpacking) {
  const PanelLayout layout = panel_layout(w.dtype);
  const std::byte* const panel = w.panel(rows.front().row / kPanelRows);
  alignas(64) float scratch[kTileK * kPanelRows];
  float values[kTileK];
  for (int64_t k = 0; k < w.cols; k += kTileK) {
    const int count = static_cast<int>(std::min<int64_t>(kTileK, w.cols - k));
    const float* const tile = expand(kernels, w, layout, panel, k, count, scratch);
    for (const RowTarget& target : rows) {
      const int64_t lane = target.row % kPanelRows;
      for (int i = 0; i < count; ++i) values[i] = tile[i * kPanelRows + lane];
      if (unpacking.rounded) {
        for (int i = 0; i < count; ++i) values[i] = rounded_to_f16(values[i]);
      }
      float* const out = target.out + k;
      for (int i = 0; i < count; ++i) out[i] = unpacking.added ? out[i] + values[i] : values[i];
    }
  }
}

template <typename X>
void multiply_panels(const Cpu& cpu, const X& x, int64_t rows, const PackedMatrix& w,
                     const float* bias, int64_t first, int64_t end, float* y) {
  for_panels(cpu, x, rows, w, first, end, [&](int64_t m, int64_t n, int width, float* acc) {
    add_bias(bias, n, width, acc);
    std::copy_n(acc, width, y + m * w.rows + n);
  });
}

template <typename X>
void multiply_gate(const Cpu& cpu, const X& x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* gate) {
  for_panels(cpu, x, rows, w, first, end, [&](int64_t m, int64_t n, int width, float* acc) {
    add_bias(bias, n, width, acc);
    cpu.kernels.silu_multiply(gate + m * w.rows + n, acc, width);
  });
}

}  // namespace

void linear(const Cpu& cpu, const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
            float* y) {
  linear_panels(cpu, x, rows, w, bias, 0, w.panel_count(), y);
}

void linear_panels(const Cpu& cpu, const float* x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* y) {
  multiply_panels(cpu, x, rows, w, bias, first, end, y);
}

void linear_panels(const Cpu& cpu, const Int8Rows& x, int64_t rows, const PackedMatrix& w,
                   const float* bias, int64_t first, int64_t end, float* y) {
  multiply_panels(cpu, x, rows, w, bias, first, end, y);
}

void gate_panels(const Cpu& cpu, const float* x, int64_t rows, const PackedMatrix& w,
                 const float* bias, int64_t first, int64_t end, float* gate) {
  multiply_gate(cpu, x, rows, w, bias, first, end, gate);
}

void gate_panels(const Cpu& cpu, const Int8Rows& x, int64_t rows, const PackedMatrix& w,
                 const float* bias, int64_t first, int64_t end, float* gate) {
  multiply_gate(cpu, x, rows, w, bias, first, end, gate);
}

void quantise_rows(const Cpu& cpu, const float* x, int64_t rows, int64_t n, Int8Block* blocks) {
  constexpr int64_t kWorthThreads = 8192;  // elements
  constexpr int64_t kRun = 16;             // groups of a block of rows, by one thread
  const int64_t of_row = n / kInt8Columns, runs = (of_row + kRun - 1) / kRun;
  const auto quantise = [&](int64_t item) {
    const int64_t block = item / runs, group = item % runs * kRun;
    const int64_t count = std::min(kRun, of_row - group), first = block * kInt8Rows;
    for (int64_t m = first; m < std::min(first + kInt8Rows, rows); ++m) {
      cpu.kernels.int8.quantise(x + m * n + group * kInt8Columns, count,
                                blocks + block * of_row + group, static_cast<int>(m - first));
    }
  };
  const int64_t items = int8_blocks(rows) * runs;
  if (rows * n < kWorthThreads) {
    for (int64_t item = 0; item < items; ++item) quantise(item);
  } else {
    cpu.threads.parallel_for(items, quantise);
  }
}

void unpack_row(const Cpu& cpu, const PackedMatrix& w, int64_t row, float* out) {
  const RowTarget one{row, out};
  unpack_of_panel(cpu.kernels, w, {&one, 1}, {});
}

void unpack_rows(const Cpu& cpu, const PackedMatrix& w, std::vector<RowTarget> rows,
                 const Unpacking& unpacking) {
  std::sort(rows.begin(), rows.end(),
            [](const RowTarget& a, const RowTarget& b) { return a.row < b.row; });
  std::vector<std::span<const RowTarget>> parts;
  for (size_t begin = 0, end = 0; begin < rows.size(); begin = end) {
    const int64_t panel = rows[begin].row / kPanelRows;
    while (end < rows.size() && end - begin < kUnpackedRows &&
           rows[end].row / kPanelRows == panel) {
      ++end;
    }
    parts.push_back(std::span<const RowTarget>(rows).subspan(begin, end - begin));
  }
  cpu.threads.parallel_for(std::ssize(parts), [&](int64_t part) {
    unpack_of_panel(cpu.kernels, w, parts[static_cast<size_t>(part)], unpacking);
  });
}

}  // namespace headrace
