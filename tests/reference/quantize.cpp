#include "tests/reference/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace headrace::reference {
namespace {

constexpr float kLargest = 65504.0f;

_Float16 half(float value) { return static_cast<_Float16>(std::clamp(value, -kLargest, kLargest)); }

_Float16 next_above(_Float16 positive) {
  return std::bit_cast<_Float16>(static_cast<uint16_t>(std::bit_cast<uint16_t>(positive) + 1));
}

void append(std::vector<std::byte>& bytes, _Float16 value) {
  const auto bits = std::bit_cast<uint16_t>(value);
  bytes.push_back(static_cast<std::byte>(bits & 255));
  bytes.push_back(static_cast<std::byte>(bits >> 8));
}

}  // namespace

float Group::value(size_t i) const {
  const float scaled = static_cast<float>(scale) * static_cast<float>(codes[i]);
  return scaled + static_cast<float>(minimum);
}

Group quantize(std::span<const float> x, int levels) {
  Group group;
  group.codes.assign(x.size(), 0);
  if (std::any_of(x.begin(), x.end(), [](float v) { return std::isnan(v); })) {
    group.minimum = std::bit_cast<_Float16>(uint16_t{0x7E00});
    return group;
  }
  group.minimum = half(*std::min_element(x.begin(), x.end()));
  if (group.minimum == 0) group.minimum = 0;  // no -0
  const float m = group.minimum;
  const float range = *std::max_element(x.begin(), x.end()) - m;
  if (range <= 0) return group;

  group.scale = half(range / static_cast<float>(levels));
  const bool too_small = group.scale == 0 || range / static_cast<float>(group.scale) >
                                                 static_cast<float>(levels) + 0.5f;
  if (too_small && static_cast<float>(group.scale) < kLargest) {
    group.scale = next_above(group.scale);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    const float steps = (x[i] - m) / static_cast<float>(group.scale);
    const float code = std::nearbyint(std::max(0.0f, std::min(steps, static_cast<float>(levels))));
    group.codes[i] = static_cast<int>(code);
  }
  return group;
}

std::vector<std::byte> quantize_row(DType dtype, std::span<const float> row) {
  std::vector<std::byte> bytes;
  for (size_t at = 0; at < row.size(); at += 64) {
    const Group group = quantize(row.subspan(at, 64), dtype == DType::kG8 ? 255 : 15);
    append(bytes, group.scale);
    append(bytes, group.minimum);
    for (size_t i = 0; i < (dtype == DType::kG8 ? 64 : 32); ++i) {
      const int code =
          dtype == DType::kG8 ? group.codes[i] : group.codes[i] | group.codes[i + 32] << 4;
      bytes.push_back(static_cast<std::byte>(code));
    }
  }
  return bytes;
}

}  // namespace headrace::reference
