// Storage formats of tensor elements: the plain ones, ggml's block formats, and two of headrace's
// own that no file has: G8 and G4 (engine/group_quant.h), made from plain elements as they are
// read. Source of the block layouts: ggml `ggml-common.h` (block_q4_0 ... block_q6_K) and the
// dequantisation formulas of ggml `ggml-quants.c` (dequantize_row_*), as also published in gguf-py
// `quants.py`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace headrace {

enum class DType {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kG8,
  kG4,
};

inline constexpr int kDTypeCount = 15;

struct DTypeInfo {
  const char* name;    // "Q4_K", as GGUF tools print it
  int block_elements;  // consecutive elements of a row that share a block; 1 for plain types
  int block_bytes;
  // Bytes at which a block has its scale in f16, and its minimum or the scale of its minima; -1:
  // it has none.
  int scale_at = -1;
  int min_at = -1;
};

const DTypeInfo& dtype_info(DType dtype);
inline const char* dtype_name(DType dtype) { return dtype_info(dtype).name; }

// F32, F16 and BF16.
inline bool is_plain(DType dtype) { return dtype_info(dtype).block_elements == 1; }

// All formats, in the order of the enum; those of headrace itself come last.
std::span<const DType> all_dtypes();

// True for the formats of ggml, which a GGUF file may hold; false for headrace's own.
bool is_ggml(DType dtype);

// The format of a ggml type number (the `type` field of a GGUF tensor); nullopt if not supported.
std::optional<DType> dtype_from_ggml(uint32_t type);
// The other way.
uint32_t ggml_type(DType dtype);
// The supported formats with their ggml type numbers, as a list for messages.
std::string supported_ggml_types();

// Bytes of a row of `elements` elements, which must be a multiple of block_elements.
size_t row_bytes(DType dtype, int64_t elements);

// The first column of a row whose element is NaN or infinite, or would be for its block's scale or
// minimum; -1 if there is none. `row`: row_bytes, not aligned.
int64_t first_not_finite(DType dtype, int64_t elements, const std::byte* row);

}  // namespace headrace
