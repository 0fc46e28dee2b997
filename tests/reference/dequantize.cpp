#include "tests/reference/dequantize.h"

#include <cstring>
#include <stdexcept>

#include "engine/half.h"

namespace headrace::reference {
namespace {

float half_at(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, sizeof(half));
  return f16_to_f32(half);
}

// A bit of a little-endian bit string.
int bit_at(const uint8_t* bytes, int index) { return (bytes[index / 8] >> (index % 8)) & 1; }

// Blocks of 32 with 4 bits per element: byte j holds element j (low nibble) and j + 16 (high).
int nibble(const uint8_t* quants, int element) {
  return element < 16 ? quants[element] & 15 : quants[element - 16] >> 4;
}

CodedElement q8_0(const uint8_t* block, int i) {
  return {half_at(block), static_cast<int8_t>(block[2 + i])};
}

CodedElement q4_0(const uint8_t* block, int i) {
  return {half_at(block), nibble(block + 2, i) - 8};
}

CodedElement q4_1(const uint8_t* block, int i) {
  return {half_at(block), nibble(block + 4, i), half_at(block + 2)};
}

// The fifth bits of the 32 elements come before the nibbles.
CodedElement q5_0(const uint8_t* block, int i) {
  const int q = nibble(block + 6, i) | (bit_at(block + 2, i) << 4);
  return {half_at(block), q - 16};
}

CodedElement q5_1(const uint8_t* block, int i) {
  const int q = nibble(block + 8, i) | (bit_at(block + 4, i) << 4);
  return {half_at(block), q, half_at(block + 2)};
}

// K blocks hold 256 elements. Two bits per element: 32 bytes hold 128 elements, the bit pair
// (i % 128) / 32 of byte i % 32 in each half.
int two_bits(const uint8_t* quants, int i) {
  return (quants[(i / 128) * 32 + i % 32] >> (2 * ((i % 128) / 32))) & 3;
}

// Four bits per element: 32 bytes hold 64 elements, low nibbles first.
int four_bits(const uint8_t* quants, int i) {
  return (quants[(i / 64) * 32 + i % 32] >> (4 * ((i % 64) / 32))) & 15;
}

CodedElement q2_k(const uint8_t* block, int i) {
  const uint8_t* scales = block;  // 16: low nibble scale, high nibble offset
  const float scale = half_at(block + 80) * static_cast<float>(scales[i / 16] & 15);
  const float offset = half_at(block + 82) * static_cast<float>(scales[i / 16] >> 4);
  return {scale, two_bits(block + 16, i), -offset};
}

CodedElement q3_k(const uint8_t* block, int i) {
  const uint8_t* high = block;  // 32 bytes: bit i / 32 of byte i % 32; set means no offset
  const uint8_t* quants = block + 32;
  const uint8_t* scales = block + 96;  // 12: sixteen low nibbles, then sixteen bit pairs
  const int s = i / 16;
  const int low = (scales[s % 8] >> (4 * (s / 8))) & 15;
  const int pair = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
  const float scale = half_at(block + 108) * static_cast<float>((low | (pair << 4)) - 32);
  const int offset = ((high[i % 32] >> (i / 32)) & 1) != 0 ? 0 : 4;
  return {scale, two_bits(quants, i) - offset};
}

struct ScaleAndMin {
  int scale;
  int min;
};

// Eight 6-bit scales and eight 6-bit minima in 12 bytes: the first four of each lie in the low bits
// of bytes 0-3 and 4-7, the others in the nibbles of bytes 8-11 and the high bits of bytes 0-7.
ScaleAndMin packed_scale(const uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4),
          (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)};
}

CodedElement q4_or_5_k(const uint8_t* block, int i, int q) {
  const ScaleAndMin packed = packed_scale(block + 4, i / 32);
  const float scale = half_at(block) * static_cast<float>(packed.scale);
  const float offset = half_at(block + 2) * static_cast<float>(packed.min);
  return {scale, q, -offset};
}

CodedElement q4_k(const uint8_t* block, int i) {
  return q4_or_5_k(block, i, four_bits(block + 16, i));
}

CodedElement q5_k(const uint8_t* block, int i) {
  const uint8_t* high = block + 16;  // 32 bytes: bit i / 32 of byte i % 32
  return q4_or_5_k(block, i, four_bits(block + 48, i) | (((high[i % 32] >> (i / 32)) & 1) << 4));
}

CodedElement q6_k(const uint8_t* block, int i) {
  const uint8_t* low = block;  // 64 bytes per 128 elements, low nibbles first
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const int nibble_q = (low[(i / 128) * 64 + i % 64] >> (4 * ((i % 128) / 64))) & 15;
  const int q = (nibble_q | (two_bits(high, i) << 4)) - 32;
  return {half_at(block + 208) * static_cast<float>(static_cast<int8_t>(scales[i / 16])), q};
}

// Headrace's own: 64 elements, a byte each, or nibbles of elements j and j + 32.
CodedElement g8(const uint8_t* block, int i) {
  return {half_at(block), block[4 + i], half_at(block + 2)};
}

CodedElement g4(const uint8_t* block, int i) {
  const int q = i < 32 ? block[4 + i] & 15 : block[4 + i - 32] >> 4;
  return {half_at(block), q, half_at(block + 2)};
}

void plain(DType dtype, const uint8_t* element, float* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, element, sizeof(float));
  } else if (dtype == DType::kF16) {
    *out = half_at(element);
  } else {
    uint16_t bits;
    std::memcpy(&bits, element, sizeof(bits));
    *out = bf16_to_f32(bits);
  }
}

CodedElement element_of(DType dtype, const uint8_t* block, int i) {
  switch (dtype) {
    case DType::kQ8_0:
      return q8_0(block, i);
    case DType::kQ4_0:
      return q4_0(block, i);
    case DType::kQ4_1:
      return q4_1(block, i);
    case DType::kQ5_0:
      return q5_0(block, i);
    case DType::kQ5_1:
      return q5_1(block, i);
    case DType::kQ2_K:
      return q2_k(block, i);
    case DType::kQ3_K:
      return q3_k(block, i);
    case DType::kQ4_K:
      return q4_k(block, i);
    case DType::kQ5_K:
      return q5_k(block, i);
    case DType::kQ6_K:
      return q6_k(block, i);
    case DType::kG8:
      return g8(block, i);
    case DType::kG4:
      return g4(block, i);
    default:
      throw std::logic_error("a plain element has no code");
  }
}

}  // namespace

CodedElement coded_element(DType dtype, const std::byte* row, int64_t i) {
  const DTypeInfo& info = dtype_info(dtype);
  const auto* const block =
      reinterpret_cast<const uint8_t*>(row) + i / info.block_elements * info.block_bytes;
  return element_of(dtype, block, static_cast<int>(i % info.block_elements));
}

void dequantize_row(DType dtype, const std::byte* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) {
    if (dtype_info(dtype).block_elements == 1) {
      plain(dtype, reinterpret_cast<const uint8_t*>(row) + i * dtype_info(dtype).block_bytes,
            out + i);
      continue;
    }
    const CodedElement element = coded_element(dtype, row, i);
    const float scaled = element.scale * static_cast<float>(element.code);
    out[i] = element.offset ? scaled + *element.offset : scaled;
  }
}

}  // namespace headrace::reference
