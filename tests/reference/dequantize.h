// The slow, plain definition of how stored rows become float32: the oracle of fast kernels.
// Source of layouts and formulas: ggml `ggml-quants.c` and gguf-py `quants.py`; the results equal
// those of gguf-py bit for bit (tests/make_dequantize_goldens.py). G8 and G4: engine/group_quant.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "engine/checkpoint/dtype.h"

namespace headrace::reference {

// scale * code, + offset in formats that have one.
struct CodedElement {
  float scale;
  int code;  // less its zero point
  std::optional<float> offset = {};
};

// Element i of a row whose format is not a plain one.
CodedElement coded_element(DType dtype, const std::byte* row, int64_t i);

// Expands a row of `cols` elements (a multiple of the format's block) into `out`. Per element one
// float32 multiplication and at most one addition, each rounded on its own (no fused operation).
void dequantize_row(DType dtype, const std::byte* row, int64_t cols, float* out);

}  // namespace headrace::reference
