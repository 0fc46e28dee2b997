// Packing into panels and expanding again, for every storage format, against the plain
// dequantisation of the rows as stored.

#include "engine/ops/packed_matrix.h"

#include <algorithm>
#include <array>

#include "engine/half.h"
#include "engine/ops/linear.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"

namespace headrace {
namespace {

std::vector<int64_t> some_cols(DType dtype) {
  const int block = dtype_info(dtype).block_elements;
  if (block == 1) return {1, 7, 32, 33, 129, 160};
  if (block == 32) return {32, 64, 160, 4864};
  if (block == 64) return {64, 128, 320, 4864};
  return {256, 512, 768};
}

// Panels at an address that is not a multiple of a vector: pages and files only promise 4 bytes.
struct Misaligned {
  explicit Misaligned(const std::vector<std::byte>& from) : bytes(from.size() + 4) {
    std::copy(from.begin(), from.end(), bytes.begin() + 4);
  }
  const std::byte* data() const { return bytes.data() + 4; }
  std::vector<std::byte> bytes;
};

class PackedMatrixOps : public testing::TestWithParam<Target> {
 protected:
  ThreadPool threads_{1};
  Cpu cpu_{threads_, kernels(GetParam())};
};

TEST_P(PackedMatrixOps, EveryElementOfEveryFormat) {
  for (const DType dtype : all_dtypes()) {
    for (const int64_t cols : some_cols(dtype)) {
      for (const int64_t rows : {1, 31, 32, 33, 97}) {
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << rows << " x " << cols);
        const Weights w = random_weights(dtype, rows, cols, 11);
        const Misaligned panels(w.panels);
        PackedMatrix view = w.view();
        view.panels = panels.data();
        for (int64_t r = 0; r < rows; ++r) {
          std::vector<float> row = nans(cols);
          unpack_row(cpu_, view, r, row.data());
          const auto expected =
              std::span(w.floats).subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols));
          ASSERT_TRUE(same_bits(expected, row)) << "row " << r;
        }
      }
    }
  }
}

// Wherever the matrix is split, and wherever that is cut.
TEST_P(PackedMatrixOps, SomePanelsAreAMatrixOfTheirRows) {
  constexpr int64_t kRows = 5 * kPanelRows + 3, kPanels = 6, kCols = 64;
  const Weights w = random_weights(DType::kQ4_0, kRows, kCols, 12);
  for (int64_t split = 0; split <= kPanels; ++split) {
    PackedMatrix whole = w.view();
    const auto border =
        w.panels.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(split) * whole.panel_bytes());
    const std::vector<std::byte> before(w.panels.begin(), border), after(border, w.panels.end());
    whole.panels = before.data();
    whole.split = split;
    whole.rest = after.data();
    for (int64_t first = 0; first < kPanels; ++first) {
      for (int64_t end = first + 1; end <= kPanels; ++end) {
        SCOPED_TRACE(testing::Message() << "split " << split << ", " << first << " to " << end);
        const PackedMatrix part = whole.of_panels(first, end);
        ASSERT_EQ(part.rows, std::min(end * kPanelRows, kRows) - first * kPanelRows);
        for (int64_t r = 0; r < part.rows; ++r) {
          std::vector<float> expected = nans(kCols), row = nans(kCols);
          unpack_row(cpu_, w.view(), first * kPanelRows + r, expected.data());
          unpack_row(cpu_, part, r, row.data());
          ASSERT_TRUE(same_bits(expected, row)) << "row " << r;
        }
      }
    }
  }
}

TEST_P(PackedMatrixOps, ManyRowsAtOnce) {
  constexpr int64_t kRows = 97, kMany = 300;
  for (const DType dtype : all_dtypes()) {
    SCOPED_TRACE(dtype_name(dtype));
    const int64_t cols = some_cols(dtype).back();
    const Weights w = random_weights(dtype, kRows, cols, 13);
    for (const Unpacking& unpacking :
         {Unpacking{}, Unpacking{true, false}, Unpacking{false, true}, Unpacking{true, true}}) {
      Random random(5);
      std::vector<float> all = random.floats(kMany * cols), expected = all;
      std::vector<RowTarget> rows;
      for (int64_t i = 0; i < kMany; ++i) {
        // Most are of one panel, some of them several times.
        const int64_t row = i % 4 == 0 ? random.below(kRows) : 32 + random.below(32);
        rows.push_back({row, all.data() + i * cols});
        for (int64_t k = 0; k < cols; ++k) {
          float value = w.floats[static_cast<size_t>(row * cols + k)];
          if (unpacking.rounded) value = f16_to_f32(to_half(value).bits);
          float& to = expected[static_cast<size_t>(i * cols + k)];
          to = unpacking.added ? to + value : value;
        }
      }
      unpack_rows(cpu_, w.view(), rows, unpacking);
      ASSERT_TRUE(same_bits(expected, all)) << unpacking.rounded << unpacking.added;
    }
  }
}

TEST_P(PackedMatrixOps, AbsentRowsAreZero) {
  for (const DType dtype : all_dtypes()) {
    SCOPED_TRACE(dtype_name(dtype));
    const int64_t cols = dtype_info(dtype).block_elements * 3;
    const Weights w = random_weights(dtype, kPanelRows, cols, 12);
    std::array<const std::byte*, kPanelRows> sources{};
    for (int r = 1; r < kPanelRows; r += 3) sources[static_cast<size_t>(r)] = w.raw_row(r);
    std::vector<std::byte> panel(panel_bytes(dtype, cols), std::byte{0xFF});
    pack_panel(dtype, cols, sources, panel.data());
    const PackedMatrix view{dtype, kPanelRows, cols, panel.data()};
    for (int64_t r = 0; r < kPanelRows; ++r) {
      std::vector<float> row = nans(cols), expected(static_cast<size_t>(cols), 0.0f);
      if (r % 3 == 1) std::copy_n(w.floats.data() + r * cols, cols, expected.data());
      unpack_row(cpu_, view, r, row.data());
      for (float& v : row) v += 0.0f;  // an absent row may hold -0: 0 * (0 - zero point)
      for (float& v : expected) v += 0.0f;
      ASSERT_TRUE(same_bits(expected, row)) << "row " << r;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, PackedMatrixOps, testing::ValuesIn(supported_targets()),
                         [](const auto& test) { return std::string(target_name(test.param)); });

TEST(PackedMatrix, SizesAreThoseOfTheFormat) {
  for (const DType dtype : all_dtypes()) {
    SCOPED_TRACE(dtype_name(dtype));
    const PanelLayout layout = panel_layout(dtype);
    const int64_t cols = 768;
    const size_t stored = kPanelRows * row_bytes(dtype, cols);
    const size_t packed = panel_bytes(dtype, cols);
    EXPECT_EQ(packed, cols / layout.block_k * layout.block_bytes);
    EXPECT_EQ(PackedMatrix::packed_bytes(dtype, 97, cols), 4 * packed);
    EXPECT_EQ(PackedMatrix::packed_bytes(dtype, 96, cols), 3 * packed);
    switch (dtype) {  // bytes per row and block: six-bit scales are kept as bytes
      case DType::kQ3_K:
      case DType::kQ4_K:
      case DType::kQ5_K:
        EXPECT_EQ(packed, stored + kPanelRows * 4 * (cols / 256));
        break;
      default:
        EXPECT_EQ(packed, stored);
    }
  }
}

}  // namespace
}  // namespace headrace
