#include "tests/ops/random_weights.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "tests/reference/block_fields.h"
#include "tests/reference/dequantize.h"

namespace headrace {
namespace {

// Finite binary16: mostly of ordinary size, some zeros, subnormals and extremes.
uint16_t random_f16(Random& random) {
  const auto sign = static_cast<uint16_t>(random.below(2) << 15);
  const auto mantissa = static_cast<uint16_t>(random.below(1024));
  switch (random.below(16)) {
    case 0:
      return sign;  // 0 or -0
    case 1:
      return sign | mantissa;  // subnormal
    case 2:
      return static_cast<uint16_t>(sign | random.below(31) << 10 | mantissa);
    default:
      return static_cast<uint16_t>(sign | (6 + random.below(10)) << 10 | mantissa);
  }
}

uint32_t random_f32_bits(Random& random) {
  const auto sign = static_cast<uint32_t>(random.below(2)) << 31;
  const auto mantissa = static_cast<uint32_t>(random.below(1 << 23));
  switch (random.below(16)) {
    case 0:
      return sign;
    case 1:
      return sign | mantissa;
    default:
      return sign | static_cast<uint32_t>(115 + random.below(14)) << 23 | mantissa;
  }
}

void fill_block(DType dtype, Random& random, std::byte* block) {
  if (dtype == DType::kF32 || dtype == DType::kBF16) {
    const uint32_t bits = random_f32_bits(random);
    const auto upper = static_cast<uint16_t>(bits >> 16);
    if (dtype == DType::kF32) std::memcpy(block, &bits, 4);
    if (dtype == DType::kBF16) std::memcpy(block, &upper, 2);
    return;
  }
  const auto put_f16 = [&](int at) {
    const uint16_t bits = random_f16(random);
    std::memcpy(block + at, &bits, 2);
  };
  if (dtype == DType::kF16) return put_f16(0);
  for (int i = 0; i < dtype_info(dtype).block_bytes; ++i) {
    block[i] = static_cast<std::byte>(random.bits() >> 32);
  }
  for (const int at : reference::f16_fields(dtype)) put_f16(at);
}

}  // namespace

const std::byte* Weights::raw_row(int64_t row) const {
  return raw.data() + static_cast<size_t>(row) * row_bytes(dtype, cols);
}

std::vector<std::byte> Weights::pack_first(int64_t count) const {
  // Packing must write every byte: leave none that happens to be right.
  std::vector<std::byte> packed(PackedMatrix::packed_bytes(dtype, count, cols), std::byte{0xFF});
  std::byte* panel = packed.data();
  for (int64_t first = 0; first < count; first += kPanelRows) {
    std::array<const std::byte*, kPanelRows> sources{};
    for (int64_t r = 0; r < std::min<int64_t>(kPanelRows, count - first); ++r) {
      sources[static_cast<size_t>(r)] = raw_row(first + r);
    }
    pack_panel(dtype, cols, sources, panel);
    panel += panel_bytes(dtype, cols);
  }
  return packed;
}

Weights random_weights(DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
  Weights w{dtype, rows, cols, {}, {}, {}};
  Random random(seed);
  const auto block_bytes = static_cast<size_t>(dtype_info(dtype).block_bytes);
  w.raw.resize(static_cast<size_t>(rows) * row_bytes(dtype, cols));
  for (size_t at = 0; at < w.raw.size(); at += block_bytes) {
    fill_block(dtype, random, w.raw.data() + at);
  }
  w.floats.resize(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    reference::dequantize_row(dtype, w.raw_row(r), cols, w.floats.data() + r * cols);
  }
  w.panels = w.pack_first(rows);
  return w;
}

}  // namespace headrace
