#include "tests/reference/int8.h"

#include <cmath>
#include <limits>

#include "tests/reference/dequantize.h"

namespace headrace::reference {
namespace {

constexpr size_t kGroup = 32;

size_t columns_of_a_scale(DType dtype) {
  const bool fine = dtype == DType::kQ2_K || dtype == DType::kQ3_K || dtype == DType::kQ6_K;
  return fine ? 16 : 32;
}

float product(const Int8Row& x, const std::vector<CodedElement>& w, size_t part) {
  float acc = 0.0f;
  for (size_t first = 0; first < w.size(); first += part) {
    int64_t of_both = 0, of_x = 0;
    for (size_t k = first; k < first + part; ++k) {
      of_both += int64_t{x.codes[k]} * w[k].code;
      of_x += x.codes[k];
    }
    const float scale = x.scales[first / kGroup];
    const float of_scales = scale * w[first].scale;
    acc = std::fma(static_cast<float>(of_both), of_scales, acc);
    if (!w[first].offset) continue;
    const float sum = scale * static_cast<float>(of_x);
    acc = std::fma(sum, *w[first].offset, acc);
  }
  return acc;
}

}  // namespace

Int8Row quantise_int8(std::span<const float> row) {
  Int8Row result;
  for (size_t first = 0; first < row.size(); first += kGroup) {
    float most = 0.0f;
    bool broken = false;
    for (const float x : row.subspan(first, kGroup)) {
      broken |= !std::isfinite(x);
      if (std::fabs(x) > most) most = std::fabs(x);
    }
    const bool is_zero = broken || most < std::ldexp(1.0f, -100);
    const float factor = 127.0f / most;
    for (const float x : row.subspan(first, kGroup)) {
      const float scaled = is_zero ? 0.0f : x * factor;
      result.codes.push_back(static_cast<int>(std::nearbyint(scaled)));
    }
    const float scale = is_zero ? 0.0f : most / 127.0f;
    result.scales.push_back(broken ? std::numeric_limits<float>::quiet_NaN() : scale);
  }
  return result;
}

void int8_linear(const float* x, int64_t rows, const StoredWeights& w, const float* bias,
                 float* y) {
  std::vector<Int8Row> quantised;
  for (int64_t m = 0; m < rows; ++m) {
    quantised.push_back(quantise_int8({x + m * w.cols, static_cast<size_t>(w.cols)}));
  }
  const size_t part = columns_of_a_scale(w.dtype);
  for (int64_t n = 0; n < w.outputs; ++n) {
    const std::byte* const row = w.rows + static_cast<size_t>(n) * row_bytes(w.dtype, w.cols);
    std::vector<CodedElement> elements;
    for (int64_t k = 0; k < w.cols; ++k) elements.push_back(coded_element(w.dtype, row, k));
    for (int64_t m = 0; m < rows; ++m) {
      const float acc = product(quantised[static_cast<size_t>(m)], elements, part);
      y[m * w.outputs + n] = bias ? acc + bias[n] : acc;
    }
  }
}

}  // namespace headrace::reference
