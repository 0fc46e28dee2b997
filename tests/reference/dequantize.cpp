#include "tests/reference/dequantize.h"

#include <cstring>

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

void q8_0(const uint8_t* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
}

void q4_0(const uint8_t* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(block + 2, i) - 8);
}

void q4_1(const uint8_t* block, float* out) {
  const float d = half_at(block);
  const float m = half_at(block + 2);
  for (int i = 0; i < 32; ++i) {
    const float scaled = d * static_cast<float>(nibble(block + 4, i));
    out[i] = scaled + m;
  }
}

// The fifth bits of the 32 elements come before the nibbles.
void q5_0(const uint8_t* block, float* out) {
  const float d = half_at(block);
  for (int i = 0; i < 32; ++i) {
    const int q = nibble(block + 6, i) | (bit_at(block + 2, i) << 4);
    out[i] = d * static_cast<float>(q - 16);
  }
}

void q5_1(const uint8_t* block, float* out) {
  const float d = half_at(block);
  const float m = half_at(block + 2);
  for (int i = 0; i < 32; ++i) {
    const int q = nibble(block + 8, i) | (bit_at(block + 4, i) << 4);
    const float scaled = d * static_cast<float>(q);
    out[i] = scaled + m;
  }
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

void q2_k(const uint8_t* block, float* out) {
  const uint8_t* scales = block;  // 16: low nibble scale, high nibble offset
  const uint8_t* quants = block + 16;
  const float d = half_at(block + 80);
  const float d_min = half_at(block + 82);
  for (int i = 0; i < 256; ++i) {
    const float scale = d * static_cast<float>(scales[i / 16] & 15);
    const float offset = d_min * static_cast<float>(scales[i / 16] >> 4);
    const float scaled = scale * static_cast<float>(two_bits(quants, i));
    out[i] = scaled - offset;
  }
}

void q3_k(const uint8_t* block, float* out) {
  const uint8_t* high = block;  // 32 bytes: bit i / 32 of byte i % 32; set means no offset
  const uint8_t* quants = block + 32;
  const uint8_t* scales = block + 96;  // 12: sixteen low nibbles, then sixteen bit pairs
  const float d = half_at(block + 108);
  for (int i = 0; i < 256; ++i) {
    const int s = i / 16;
    const int low = (scales[s % 8] >> (4 * (s / 8))) & 15;
    const int pair = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
    const float scale = d * static_cast<float>((low | (pair << 4)) - 32);
    const int offset = ((high[i % 32] >> (i / 32)) & 1) != 0 ? 0 : 4;
    out[i] = scale * static_cast<float>(two_bits(quants, i) - offset);
  }
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

void q4_k(const uint8_t* block, float* out) {
  const float d = half_at(block);
  const float d_min = half_at(block + 2);
  for (int i = 0; i < 256; ++i) {
    const ScaleAndMin packed = packed_scale(block + 4, i / 32);
    const float scale = d * static_cast<float>(packed.scale);
    const float offset = d_min * static_cast<float>(packed.min);
    const float scaled = scale * static_cast<float>(four_bits(block + 16, i));
    out[i] = scaled - offset;
  }
}

void q5_k(const uint8_t* block, float* out) {
  const float d = half_at(block);
  const float d_min = half_at(block + 2);
  const uint8_t* high = block + 16;  // 32 bytes: bit i / 32 of byte i % 32
  for (int i = 0; i < 256; ++i) {
    const ScaleAndMin packed = packed_scale(block + 4, i / 32);
    const float scale = d * static_cast<float>(packed.scale);
    const float offset = d_min * static_cast<float>(packed.min);
    const int q = four_bits(block + 48, i) | (((high[i % 32] >> (i / 32)) & 1) << 4);
    const float scaled = scale * static_cast<float>(q);
    out[i] = scaled - offset;
  }
}

void q6_k(const uint8_t* block, float* out) {
  const uint8_t* low = block;  // 64 bytes per 128 elements, low nibbles first
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const float d = half_at(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int nibble_q = (low[(i / 128) * 64 + i % 64] >> (4 * ((i % 128) / 64))) & 15;
    const int q = (nibble_q | (two_bits(high, i) << 4)) - 32;
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[i / 16]));
    out[i] = scale * static_cast<float>(q);
  }
}

// Headrace's own: 64 elements, a byte each, or nibbles of elements j and j + 32.
void g8(const uint8_t* block, float* out) {
  for (int i = 0; i < 64; ++i) {
    const float scaled = half_at(block) * static_cast<float>(block[4 + i]);
    out[i] = scaled + half_at(block + 2);
  }
}

void g4(const uint8_t* block, float* out) {
  for (int i = 0; i < 64; ++i) {
    const int q = i < 32 ? block[4 + i] & 15 : block[4 + i - 32] >> 4;
    const float scaled = half_at(block) * static_cast<float>(q);
    out[i] = scaled + half_at(block + 2);
  }
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

void block_of(DType dtype, const uint8_t* block, float* out) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return plain(dtype, block, out);
    case DType::kQ8_0:
      return q8_0(block, out);
    case DType::kQ4_0:
      return q4_0(block, out);
    case DType::kQ4_1:
      return q4_1(block, out);
    case DType::kQ5_0:
      return q5_0(block, out);
    case DType::kQ5_1:
      return q5_1(block, out);
    case DType::kQ2_K:
      return q2_k(block, out);
    case DType::kQ3_K:
      return q3_k(block, out);
    case DType::kQ4_K:
      return q4_k(block, out);
    case DType::kQ5_K:
      return q5_k(block, out);
    case DType::kQ6_K:
      return q6_k(block, out);
    case DType::kG8:
      return g8(block, out);
    case DType::kG4:
      return g4(block, out);
  }
}

}  // namespace

void dequantize_row(DType dtype, const std::byte* row, int64_t cols, float* out) {
  const DTypeInfo& info = dtype_info(dtype);
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  for (int64_t i = 0; i < cols; i += info.block_elements) {
    block_of(dtype, bytes, out + i);
    bytes += info.block_bytes;
  }
}

}  // namespace headrace::reference
