// Where a block of codes keeps its scales and minima. Source: as in dequantize.h.
#pragma once

#include <vector>

#include "engine/checkpoint/dtype.h"

namespace headrace::reference {

// Byte offsets of the f16 fields of a block; none for plain formats.
inline std::vector<int> f16_fields(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return {};
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ5_0:
      return {0};
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kG8:
    case DType::kG4:
      return {0, 2};
    case DType::kQ2_K:
      return {80, 82};
    case DType::kQ3_K:
      return {108};
    case DType::kQ6_K:
      return {208};
  }
  return {};
}

}  // namespace headrace::reference
