#include "engine/ops/packed_matrix.h"

#include <array>
#include <cstring>
#include <stdexcept>

namespace headrace {
namespace {

constexpr int kScaleRow = kPanelRows * 2;  // bytes of one f16 per row

uint8_t u8(std::byte value) { return static_cast<uint8_t>(value); }

// The codes (unsigned, not yet shifted to their signed meaning) of the k-th element of one row's
// ggml block.
int code_at(DType dtype, const std::byte* block, int k) {
  const auto nibble = [&](int first, int i) {  // i in 0..31: low nibbles first
    const uint8_t b = u8(block[first + i % 16]);
    return i < 16 ? b & 15 : b >> 4;
  };
  const auto bit32 = [&](int first, int i) { return (u8(block[first + i / 8]) >> (i % 8)) & 1; };
  switch (dtype) {
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
  const auto f16 = [&](int slot, int from) {
    std::memcpy(out + slot * kScaleRow + r * 2, block + from, 2);
  };
  const auto byte_at = [&](int first, int group, auto value) {
    out[first + group * kPanelRows + r] = static_cast<std::byte>(value);
  };
  switch (dtype) {
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ5_0:
      f16(0, 0);
      break;
    case DType::kQ4_1:
    case DType::kQ5_1:
      f16(0, 0);
      f16(1, 2);
      break;
    case DType::kQ2_K:
      f16(0, 80);
      f16(1, 82);
      for (int g = 0; g < 16; ++g) byte_at(2 * kScaleRow, g, block[g]);
      break;
    case DType::kQ3_K:
      f16(0, 108);
      for (int g = 0; g < 16; ++g) byte_at(kScaleRow, g, q3_scale(block + 96, g));
      break;
    case DType::kQ4_K:
    case DType::kQ5_K:
      f16(0, 0);
      f16(1, 2);
      for (int g = 0; g < 8; ++g) {
        const auto [scale, min] = scale_min(block + 4, g);
        byte_at(2 * kScaleRow, g, scale);
        byte_at(2 * kScaleRow, 8 + g, min);
      }
      break;
    case DType::kQ6_K:
      f16(0, 208);
      for (int g = 0; g < 16; ++g) byte_at(kScaleRow, g, block[192 + g]);
      break;
    default:
      break;
  }
}

// Adds `code` of row r at column k to the planes that start at `codes`, which are zero before.
void pack_code(const PanelLayout& layout, int code, int r, int k, int block_k, std::byte* codes) {
  const auto add = [](std::byte& byte, int value) { byte |= static_cast<std::byte>(value); };
  const int j = r % 16, upper = r / 16;
  if (layout.low_bits == 8) {
    codes[k * kPanelRows + r] = static_cast<std::byte>(code);
    return;
  }
  std::byte* high = codes + block_k * kPanelRows * layout.low_bits / 8;
  const int low_code = code & ((1 << layout.low_bits) - 1), high_code = code >> layout.low_bits;
  if (layout.low_bits == 4) {
    add(codes[k * 16 + j], low_code << (upper * 4));
  } else {
    add(codes[k / 2 * 16 + j], low_code << (k % 2 * 4 + upper * 2));
  }
  if (layout.high_bits == 2) add(high[k / 2 * 16 + j], high_code << (k % 2 * 4 + upper * 2));
  if (layout.high_bits == 1) add(high[k / 4 * 16 + j], high_code << (k % 4 * 2 + upper));
}

PanelLayout plain(size_t element) { return {1, kPanelRows * element, 0, 0, 0}; }

PanelLayout coded(int block_k, int scale_bytes, int low_bits, int high_bits) {
  const auto codes = static_cast<size_t>(block_k * kPanelRows * (low_bits + high_bits) / 8);
  const auto offset = static_cast<size_t>(scale_bytes);
  return {block_k, offset + codes, offset, low_bits, high_bits};
}

}  // namespace

PanelLayout panel_layout(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return plain(4);
    case DType::kF16:
    case DType::kBF16:
      return plain(2);
    case DType::kQ8_0:
      return coded(32, kScaleRow, 8, 0);
    case DType::kQ4_0:
      return coded(32, kScaleRow, 4, 0);
    case DType::kQ4_1:
      return coded(32, 2 * kScaleRow, 4, 0);
    case DType::kQ5_0:
      return coded(32, kScaleRow, 4, 1);
    case DType::kQ5_1:
      return coded(32, 2 * kScaleRow, 4, 1);
    case DType::kQ2_K:
      return coded(256, 2 * kScaleRow + 16 * kPanelRows, 2, 0);
    case DType::kQ3_K:
      return coded(256, kScaleRow + 16 * kPanelRows, 2, 1);
    case DType::kQ4_K:
      return coded(256, 2 * kScaleRow + 16 * kPanelRows, 4, 0);
    case DType::kQ5_K:
      return coded(256, 2 * kScaleRow + 16 * kPanelRows, 4, 1);
    case DType::kQ6_K:
      return coded(256, kScaleRow + 16 * kPanelRows, 4, 2);
  }
  throw std::logic_error("panel_layout: unknown dtype");
}

size_t PackedMatrix::packed_panel_bytes(DType dtype, int64_t cols) {
  const PanelLayout layout = panel_layout(dtype);
  return static_cast<size_t>(cols / layout.block_k) * layout.block_bytes;
}

size_t PackedMatrix::packed_bytes(DType dtype, int64_t rows, int64_t cols) {
  const auto panels = static_cast<size_t>((rows + kPanelRows - 1) / kPanelRows);
  return panels * packed_panel_bytes(dtype, cols);
}

void pack_panel(DType dtype, int64_t cols, std::span<const std::byte* const, kPanelRows> rows,
                std::byte* panel) {
  const PanelLayout layout = panel_layout(dtype);
  std::memset(panel, 0, PackedMatrix::packed_panel_bytes(dtype, cols));
  if (layout.low_bits == 0) {
    const size_t element = layout.block_bytes / kPanelRows;
    for (int r = 0; r < kPanelRows; ++r) {
      if (!rows[r]) continue;
      for (int64_t k = 0; k < cols; ++k) {
        std::memcpy(panel + (k * kPanelRows + r) * element, rows[r] + k * element, element);
      }
    }
    return;
  }
  const auto source_block = static_cast<size_t>(dtype_info(dtype).block_bytes);
  for (int64_t b = 0; b < cols / layout.block_k; ++b) {
    std::byte* block = panel + b * layout.block_bytes;
    for (int r = 0; r < kPanelRows; ++r) {
      if (!rows[r]) continue;
      const std::byte* source = rows[r] + b * source_block;
      pack_scales(dtype, source, r, block);
      for (int k = 0; k < layout.block_k; ++k) {
        pack_code(layout, code_at(dtype, source, k), r, k, layout.block_k,
                  block + layout.codes_offset);
      }
    }
  }
}

}  // namespace headrace
