#include "engine/ops/packed_matrix.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

namespace headrace {
namespace {

constexpr int kScaleRow = kPanelRows * 2;  // bytes of one f16 per row

uint8_t u8(std::byte value) { return static_cast<uint8_t>(value); }

// The code (unsigned, not yet shifted to its signed meaning) of the k-th element of one row's ggml
// block.
template <DType kType>
int code_at(const std::byte* block, int k) {
  const auto nibble = [&](int first, int i) {  // i in 0..31: low nibbles first
    const uint8_t b = u8(block[first + i % 16]);
    return i < 16 ? b & 15 : b >> 4;
  };
  const auto bit32 = [&](int first, int i) { return (u8(block[first + i / 8]) >> (i % 8)) & 1; };
  switch (kType) {
    case DType::kQ8_0:
      return u8(block[2 + k]);
    case DType::kQ4_0:
      return nibble(2, k);
    case DType::kQ4_1:
      return nibble(4, k);
    case DType::kQ5_0:
      return nibble(6, k) | bit32(2, k) << 4;
    case DType::kQ5_1:
      return nibble(8, k) | bit32(4, k) << 4;
    case DType::kQ2_K:  // scales[16], qs[64], d, dmin: 128 k per half, 32 k per pair of bits
      return (u8(block[16 + k / 128 * 32 + k % 32]) >> (k % 128 / 32 * 2)) & 3;
    case DType::kQ3_K: {  // hmask[32], qs[64], scales[12], d
      const int low = (u8(block[32 + k / 128 * 32 + k % 32]) >> (k % 128 / 32 * 2)) & 3;
      const int high = (u8(block[k % 32]) >> (k / 32)) & 1;
      return low | high << 2;
    }
    case DType::kQ4_K: {  // d, dmin, scales[12], qs[128]: 64 k per 32 bytes
      const uint8_t b = u8(block[16 + k / 64 * 32 + k % 32]);
      return k % 64 < 32 ? b & 15 : b >> 4;
    }
    case DType::kQ5_K: {  // d, dmin, scales[12], qh[32], qs[128]
      const uint8_t b = u8(block[48 + k / 64 * 32 + k % 32]);
      const int high = (u8(block[16 + k % 32]) >> (k / 32)) & 1;
      return (k % 64 < 32 ? b & 15 : b >> 4) | high << 4;
    }
    case DType::kQ6_K: {  // ql[128], qh[64], scales[16], d: 128 k per half
      const int half = k / 128, i = k % 128, column = i % 32, quarter = i / 32;
      const uint8_t b = u8(block[half * 64 + column + (quarter & 1) * 32]);
      const int low = quarter < 2 ? b & 15 : b >> 4;
      return low | ((u8(block[128 + half * 32 + column]) >> (quarter * 2)) & 3) << 4;
    }
    case DType::kG8:
      return u8(block[4 + k]);
    case DType::kG4:
      return k < 32 ? u8(block[4 + k]) & 15 : u8(block[4 + k - 32]) >> 4;
    default:
      throw std::logic_error("code_at: a plain dtype has no codes");
  }
}

// The 6-bit scale and minimum of group g of a Q4_K or Q5_K block (12 bytes at `s`).
std::pair<uint8_t, uint8_t> scale_min(const std::byte* s, int g) {
  if (g < 4) return {u8(s[g]) & 63, u8(s[g + 4]) & 63};
  return {static_cast<uint8_t>((u8(s[g + 4]) & 15) | (u8(s[g - 4]) >> 6) << 4),
          static_cast<uint8_t>((u8(s[g + 4]) >> 4) | (u8(s[g]) >> 6) << 4)};
}

// The 6-bit scale of group g of a Q3_K block, less its offset of 32.
int8_t q3_scale(const std::byte* s, int g) {
  const int low = g < 8 ? u8(s[g]) & 15 : u8(s[g - 8]) >> 4;
  const int high = (u8(s[8 + g % 4]) >> (g / 4 * 2)) & 3;
  return static_cast<int8_t>((low | high << 4) - 32);
}

// Writes row r's scales of one ggml block into the head of a panel block.
void pack_scales(DType dtype, const std::byte* block, int r, std::byte* out) {
  const auto byte_at = [&](int first, int group, auto value) {
    out[first + group * kPanelRows + r] = static_cast<std::byte>(value);
  };
  const DTypeInfo& info = dtype_info(dtype);
  std::memcpy(out + r * 2, block + info.scale_at, 2);
  if (info.min_at >= 0) std::memcpy(out + kScaleRow + r * 2, block + info.min_at, 2);
  switch (dtype) {
    case DType::kQ2_K:
      for (int g = 0; g < 16; ++g) byte_at(2 * kScaleRow, g, block[g]);
      break;
    case DType::kQ3_K:
      for (int g = 0; g < 16; ++g) byte_at(kScaleRow, g, q3_scale(block + 96, g));
      break;
    case DType::kQ4_K:
    case DType::kQ5_K:
      for (int g = 0; g < 8; ++g) {
        const auto [scale, min] = scale_min(block + 4, g);
        byte_at(2 * kScaleRow, g, scale);
        byte_at(2 * kScaleRow, 8 + g, min);
      }
      break;
    case DType::kQ6_K:
      for (int g = 0; g < 16; ++g) byte_at(kScaleRow, g, block[192 + g]);
      break;
    default:
      break;
  }
}

// Codes of a block, k by k, as pack_planes takes them.
using BlockCodes = uint8_t[256][kPanelRows];

// Cuts the codes of a block into planes.
template <DType kType>
void pack_planes(const BlockCodes& c, std::byte* out) {
  constexpr PanelLayout kLayout = panel_layout(kType);
  constexpr int kK = kLayout.block_k, kLow = kLayout.low_bits;
  const auto put = [&out](int value) { *out++ = static_cast<std::byte>(value); };
  if constexpr (kLow == 8) {
    std::memcpy(out, c, kK * kPanelRows);
  } else if constexpr (kLow == 4) {
    for (int k = 0; k < kK; ++k) {
      for (int j = 0; j < 16; ++j) put((c[k][j] & 15) | (c[k][j + 16] & 15) << 4);
    }
  }
  const auto put_2_bits = [&](int shift) {
    const auto at = [&](int k, int r) { return (c[k][r] >> shift) & 3; };
    for (int k = 0; k < kK; k += 2) {
      for (int j = 0; j < 16; ++j) {
        put(at(k, j) | at(k, j + 16) << 2 | at(k + 1, j) << 4 | at(k + 1, j + 16) << 6);
      }
    }
  };
  if constexpr (kLow == 2) put_2_bits(0);
  if constexpr (kLayout.high_bits == 2) put_2_bits(kLow);
  if constexpr (kLayout.high_bits == 1) {
    for (int k = 0; k < kK; k += 4) {
      for (int j = 0; j < 16; ++j) {
        int bits = 0;
        for (int i = 0; i < 8; ++i) bits |= ((c[k + i / 2][j + i % 2 * 16] >> kLow) & 1) << i;
        put(bits);
      }
    }
  }
}

using PanelRows = std::span<const std::byte* const, kPanelRows>;

template <DType kType>
void pack_coded(int64_t cols, PanelRows rows, std::byte* panel) {
  constexpr PanelLayout kLayout = panel_layout(kType);
  const auto source_block = static_cast<size_t>(dtype_info(kType).block_bytes);
  BlockCodes codes = {};
  for (int64_t b = 0; b < cols / kLayout.block_k; ++b) {
    std::byte* block = panel + b * kLayout.block_bytes;
    for (int r = 0; r < kPanelRows; ++r) {
      if (!rows[r]) continue;
      const std::byte* source = rows[r] + b * source_block;
      pack_scales(kType, source, r, block);
      for (int k = 0; k < kLayout.block_k; ++k) {
        codes[k][r] = static_cast<uint8_t>(code_at<kType>(source, k));
      }
    }
    pack_planes<kType>(codes, block + kLayout.codes_offset);
  }
}

template <typename Element>
void pack_plain(int64_t cols, PanelRows rows, std::byte* panel) {
  for (int r = 0; r < kPanelRows; ++r) {
    if (!rows[r]) continue;
    for (int64_t k = 0; k < cols; ++k) {
      std::memcpy(panel + (k * kPanelRows + r) * sizeof(Element), rows[r] + k * sizeof(Element),
                  sizeof(Element));
    }
  }
}

}  // namespace

PackedMatrix PackedMatrix::of_panels(int64_t first, int64_t end) const {
  PackedMatrix part = *this;
  part.rows = std::min(end * kPanelRows, rows) - first * kPanelRows;
  part.panels = panel(first);
  if (first < split && split < end) {
    part.split = split - first;
  } else {
    part.split = std::numeric_limits<int64_t>::max();
    part.rest = nullptr;
  }
  return part;
}

size_t PackedMatrix::packed_bytes(DType dtype, int64_t rows, int64_t cols) {
  const auto panels = static_cast<size_t>((rows + kPanelRows - 1) / kPanelRows);
  return panels * headrace::panel_bytes(dtype, cols);
}

void pack_panel(DType dtype, int64_t cols, PanelRows rows, std::byte* panel) {
  std::memset(panel, 0, panel_bytes(dtype, cols));
  switch (dtype) {
    case DType::kF32:
      return pack_plain<float>(cols, rows, panel);
    case DType::kF16:
    case DType::kBF16:
      return pack_plain<uint16_t>(cols, rows, panel);
    case DType::kQ8_0:
      return pack_coded<DType::kQ8_0>(cols, rows, panel);
    case DType::kQ4_0:
      return pack_coded<DType::kQ4_0>(cols, rows, panel);
    case DType::kQ4_1:
      return pack_coded<DType::kQ4_1>(cols, rows, panel);
    case DType::kQ5_0:
      return pack_coded<DType::kQ5_0>(cols, rows, panel);
    case DType::kQ5_1:
      return pack_coded<DType::kQ5_1>(cols, rows, panel);
    case DType::kQ2_K:
      return pack_coded<DType::kQ2_K>(cols, rows, panel);
    case DType::kQ3_K:
      return pack_coded<DType::kQ3_K>(cols, rows, panel);
    case DType::kQ4_K:
      return pack_coded<DType::kQ4_K>(cols, rows, panel);
    case DType::kQ5_K:
      return pack_coded<DType::kQ5_K>(cols, rows, panel);
    case DType::kQ6_K:
      return pack_coded<DType::kQ6_K>(cols, rows, panel);
    case DType::kG8:
      return pack_coded<DType::kG8>(cols, rows, panel);
    case DType::kG4:
      return pack_coded<DType::kG4>(cols, rows, panel);
  }
}

}  // namespace headrace
