// A weight matrix W[rows][cols] in panels: the one layout weights have in memory and in the
// offload file.
//
// Panel p holds rows 32p .. 32p+31 (zeros past the end) as a sequence of blocks along the columns
// (k). A block spans block_k columns and holds first the scales of its 32 rows, then the codes, k
// by k, so that one pass over a panel reads ascending addresses:
//
//   F32, F16, BF16   block_k 1     32 elements
//   Q8_0             block_k 32    d[32] f16, then per k: 32 int8
//   Q4_0 Q5_0        block_k 32    d[32] f16, codes
//   Q4_1 Q5_1        block_k 32    d[32] f16, m[32] f16, codes
//   G8 G4            block_k 64    d[32] f16, m[32] f16, then per k: 32 bytes (G8), codes (G4)
//   Q2_K             block_k 256   d[32] f16, dmin[32] f16, 16 x {scale | min << 4}[32] u8, codes
//   Q3_K Q6_K        block_k 256   d[32] f16, 16 x scale[32] i8, codes
//   Q4_K Q5_K        block_k 256   d[32] f16, dmin[32] f16, 8 x scale[32] u8, 8 x min[32] u8, codes
//
// Codes narrower than 8 bits are cut into planes of 4, 2 and 1 bits and stored by groups of 4 k:
//   4-bit plane  4 x 16 bytes: byte j of k holds row j (low) and row j+16 (high)
//   2-bit plane  2 x 16 bytes: byte j of k, k+1: row j of k, row j+16 of k, then the same of k+1
//   1-bit plane  16 bytes: byte j holds bits (row j of k, row j+16 of k, row j of k+1, ...)
// A code is low plane | next plane << bits of the planes before. Q2: 2; Q3: 2+1; Q4 and G4: 4; Q5:
// 4+1; Q6: 4+2. The sizes equal those of the ggml formats, but for K-quants' 6-bit scales kept as
// bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "engine/checkpoint/dtype.h"
#include "engine/memory/budget.h"
#include "engine/ops/canonical.h"
#include "engine/ops/panel_elements.h"

namespace headrace {

// The view every kernel takes. The panels lie one after the other, in one piece or in two: those
// from `split` on may be elsewhere.
struct PackedMatrix {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* panels = nullptr;
  int64_t split = std::numeric_limits<int64_t>::max();
  const std::byte* rest = nullptr;  // panel `split`
  // A panel is not packed but 32 rows of f16, one after the other, for the tensor cores of a GPU.
  bool half_rows = false;

  int64_t panel_count() const { return (rows + kPanelRows - 1) / kPanelRows; }
  HEADRACE_BOTH size_t panel_bytes() const {
    return half_rows ? static_cast<size_t>(kPanelRows * 2 * cols)
                     : headrace::panel_bytes(dtype, cols);
  }
  HEADRACE_BOTH const std::byte* panel(int64_t p) const {
    return p < split ? panels + static_cast<size_t>(p) * panel_bytes()
                     : rest + static_cast<size_t>(p - split) * panel_bytes();
  }
  // Panels [first, end), not none of them, as a matrix of their rows.
  PackedMatrix of_panels(int64_t first, int64_t end) const;

  static size_t packed_bytes(DType dtype, int64_t rows, int64_t cols);
};

// Tables that rows are looked up in.
struct EmbeddingTables {
  PackedMatrix tokens;     // [vocab_size][d_model]
  PackedMatrix positions;  // [max_positions + position_offset][d_model], or nothing
  bool rounded = false;    // their elements are, to f16
};

// Packs 32 rows as stored in a checkpoint (row_bytes(dtype, cols) each; nullptr: a row of zeros)
// into one panel of panel_bytes. cols must be a multiple of the dtype's block_elements.
void pack_panel(DType dtype, int64_t cols, std::span<const std::byte* const, kPanelRows> rows,
                std::byte* panel);

}  // namespace headrace
