// Panels of packed weights, element by element: where each one lies and what it stands for
// (ops/packed_matrix.h shows the layout). Plain code that the scalar CPU path and the GPU share.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/both.h"
#include "engine/checkpoint/dtype.h"
#include "engine/half.h"
#include "engine/ops/canonical.h"

namespace headrace {

// How a dtype is laid out in panels.
struct PanelLayout {
  int block_k;          // columns per block
  size_t block_bytes;   // bytes of a block (32 rows x block_k columns)
  size_t codes_offset;  // where the codes start in a block
  int low_bits;         // bits of the first plane: 8, 4 or 2; 0 for plain elements
  int high_bits;        // bits of the second plane: 2, 1 or 0
};

HEADRACE_BOTH constexpr PanelLayout plain_layout(size_t element) {
  return {1, kPanelRows * element, 0, 0, 0};
}

// `scales`: how many 16-bit scales and minima per row stand before the codes, and bytes for each
// group of columns.
HEADRACE_BOTH constexpr PanelLayout coded_layout(int block_k, int scales, int group_bytes,
                                                 int low_bits, int high_bits) {
  const auto codes = static_cast<size_t>(block_k * kPanelRows * (low_bits + high_bits) / 8);
  const auto offset = static_cast<size_t>((2 * scales + group_bytes) * kPanelRows);
  return {block_k, offset + codes, offset, low_bits, high_bits};
}

HEADRACE_BOTH constexpr PanelLayout panel_layout(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      break;
    case DType::kF16:
    case DType::kBF16:
      return plain_layout(2);
    case DType::kQ8_0:
      return coded_layout(32, 1, 0, 8, 0);
    case DType::kQ4_0:
      return coded_layout(32, 1, 0, 4, 0);
    case DType::kQ4_1:
      return coded_layout(32, 2, 0, 4, 0);
    case DType::kQ5_0:
      return coded_layout(32, 1, 0, 4, 1);
    case DType::kQ5_1:
      return coded_layout(32, 2, 0, 4, 1);
    case DType::kQ2_K:
      return coded_layout(256, 2, 16, 2, 0);
    case DType::kQ3_K:
      return coded_layout(256, 1, 16, 2, 1);
    case DType::kQ4_K:
      return coded_layout(256, 2, 16, 4, 0);
    case DType::kQ5_K:
      return coded_layout(256, 2, 16, 4, 1);
    case DType::kQ6_K:
      return coded_layout(256, 1, 16, 4, 2);
    case DType::kG8:
      return coded_layout(64, 2, 0, 8, 0);
    case DType::kG4:
      return coded_layout(64, 2, 0, 4, 0);
  }
  return plain_layout(4);
}

HEADRACE_BOTH constexpr bool is_low_bit(DType dtype) { return panel_layout(dtype).low_bits > 0; }

// Bytes of a panel of so many columns, a multiple of the dtype's block_elements.
HEADRACE_BOTH constexpr size_t panel_bytes(DType dtype, int64_t cols) {
  const PanelLayout layout = panel_layout(dtype);
  return static_cast<size_t>(cols / layout.block_k) * layout.block_bytes;
}

HEADRACE_BOTH inline int u8_at(const std::byte* p) { return static_cast<uint8_t>(*p); }
HEADRACE_BOTH inline int i8_at(const std::byte* p) { return static_cast<int8_t>(*p); }

// The code of row r and column k of a block, before it is shifted to its signed meaning.
template <DType kType>
HEADRACE_BOTH inline int panel_code(const std::byte* block, int r, int k) {
  constexpr PanelLayout kLayout = panel_layout(kType);
  const std::byte* const codes = block + kLayout.codes_offset;
  const int j = r % 16, upper = r / 16;
  if constexpr (kLayout.low_bits == 8) return u8_at(codes + k * kPanelRows + r);
  const std::byte* const high = codes + kLayout.block_k * kPanelRows * kLayout.low_bits / 8;
  const auto plane2 = [&](const std::byte* plane) {
    return (u8_at(plane + k / 2 * 16 + j) >> (k % 2 * 4 + upper * 2)) & 3;
  };
  int code = 0;
  if constexpr (kLayout.low_bits == 4) {
    code = (u8_at(codes + k * 16 + j) >> (upper * 4)) & 15;
  } else {
    code = plane2(codes);
  }
  if constexpr (kLayout.high_bits == 2) code |= plane2(high) << kLayout.low_bits;
  if constexpr (kLayout.high_bits == 1) {
    code |= ((u8_at(high + k / 4 * 16 + j) >> (k % 4 * 2 + upper)) & 1) << kLayout.low_bits;
  }
  return code;
}

// w = scale * signed code [+ offset], rounded once: with an offset the product is exact, of 17 bits
// of scale at most and 8 of code.
struct Affine {
  float scale, offset;
};

template <DType kType>
inline constexpr bool kHasOffset =
    kType == DType::kQ4_1 || kType == DType::kQ5_1 || kType == DType::kQ2_K ||
    kType == DType::kQ4_K || kType == DType::kQ5_K || kType == DType::kG8 || kType == DType::kG4;

// Columns that are sure to share scale and offset.
template <DType kType>
inline constexpr int kScaleColumns =
    kType == DType::kQ2_K || kType == DType::kQ3_K || kType == DType::kQ6_K ? 16 : 32;

// Row r's scale and offset for column k of a block.
template <DType kType>
HEADRACE_BOTH inline Affine panel_affine(const std::byte* block, int r, int k) {
  const float d = f16_at(block + r * 2);
  const std::byte* const second = block + kPanelRows * 2;  // minima, or bytes of the groups
  const std::byte* const third = block + kPanelRows * 4;
  const auto of_group = [&](const std::byte* first, int group) {
    return first + group * kPanelRows + r;
  };
  if constexpr (kType == DType::kQ4_1 || kType == DType::kQ5_1 || kType == DType::kG8 ||
                kType == DType::kG4) {
    return {d, f16_at(second + r * 2)};
  } else if constexpr (kType == DType::kQ2_K) {
    const int both = u8_at(of_group(third, k / 16));
    return {d * static_cast<float>(both & 15),
            -(f16_at(second + r * 2) * static_cast<float>(both >> 4))};
  } else if constexpr (kType == DType::kQ4_K || kType == DType::kQ5_K) {
    return {d * static_cast<float>(u8_at(of_group(third, k / 32))),
            -(f16_at(second + r * 2) * static_cast<float>(u8_at(of_group(third, 8 + k / 32))))};
  } else if constexpr (kType == DType::kQ3_K || kType == DType::kQ6_K) {
    return {d * static_cast<float>(i8_at(of_group(second, k / 16))), 0.0f};
  } else {
    return {d, 0.0f};
  }
}

template <DType kType>
HEADRACE_BOTH constexpr int signed_code(int code) {
  switch (kType) {
    case DType::kQ8_0:
      return static_cast<int8_t>(code);
    case DType::kQ4_0:
      return code - 8;
    case DType::kQ5_0:
      return code - 16;
    case DType::kQ3_K:
      return code - 4;
    case DType::kQ6_K:
      return code - 32;
    default:
      return code;
  }
}

template <DType kType>
HEADRACE_BOTH inline float weight_of(const Affine& of, int code) {
  const auto factor = static_cast<float>(signed_code<kType>(code));
  return kHasOffset<kType> ? std::fma(of.scale, factor, of.offset) : of.scale * factor;
}

// The weight of row r and column k of a panel.
template <DType kType>
HEADRACE_BOTH inline float panel_weight(const std::byte* panel, int r, int64_t k) {
  constexpr PanelLayout kLayout = panel_layout(kType);
  const std::byte* const block =
      panel + static_cast<size_t>(k / kLayout.block_k) * kLayout.block_bytes;
  if constexpr (kType == DType::kF32) {
    float value;
    std::memcpy(&value, block + r * 4, sizeof value);
    return value;
  } else if constexpr (kType == DType::kF16) {
    return f16_at(block + r * 2);
  } else if constexpr (kType == DType::kBF16) {
    return bf16_to_f32(u16_at(block + r * 2));
  } else {
    const int column = static_cast<int>(k % kLayout.block_k);
    return weight_of<kType>(panel_affine<kType>(block, r, column),
                            panel_code<kType>(block, r, column));
  }
}

}  // namespace headrace
