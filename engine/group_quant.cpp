#include "engine/group_quant.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "engine/half.h"

namespace headrace {
namespace {

constexpr float kF16Max = 65504.0f;
constexpr uint16_t kF16MaxBits = 0x7BFF;
constexpr uint16_t kF16Nan = 0x7E00;

uint16_t minimum_of(float lo) {
  const uint16_t bits = f32_to_f16(std::clamp(lo, -kF16Max, kF16Max));
  return bits == 0x8000 ? uint16_t{0} : bits;
}

uint16_t scale_of(float range, float levels) {
  if (!(range > 0.0f)) return 0;
  const uint16_t bits = f32_to_f16(std::min(range / levels, kF16Max));
  const bool reaches = range / f16_to_f32(bits) <= levels + 0.5f;
  return reaches || bits == kF16MaxBits ? bits : static_cast<uint16_t>(bits + 1);
}

}  // namespace

GroupScale quantize_group(std::span<const float> x, int levels, uint8_t* codes) {
  float lo = x[0], hi = x[0];
  bool broken = false;
  for (const float v : x) {
    lo = v < lo ? v : lo;
    hi = v > hi ? v : hi;
    broken |= v != v;
  }
  std::fill_n(codes, x.size(), uint8_t{0});
  if (broken) return {0, kF16Nan};

  const auto most = static_cast<float>(levels);
  const uint16_t minimum = minimum_of(lo);
  const float m = f16_to_f32(minimum);
  const uint16_t scale = scale_of(hi - m, most);
  if (scale == 0) return {scale, minimum};
  const float d = f16_to_f32(scale);
  for (size_t i = 0; i < x.size(); ++i) {
    const float q = std::clamp((x[i] - m) / d, 0.0f, most);
    codes[i] = static_cast<uint8_t>(std::lrint(q));
  }
  return {scale, minimum};
}

void quantize_block(std::span<const float, kQuantGroup> x, int bits, std::byte* block) {
  std::array<uint8_t, kQuantGroup> codes;
  const GroupScale scale = quantize_group(x, (1 << bits) - 1, codes.data());
  std::memcpy(block, &scale.scale, 2);
  std::memcpy(block + 2, &scale.minimum, 2);
  if (bits == 8) {
    std::memcpy(block + 4, codes.data(), codes.size());
    return;
  }
  for (size_t j = 0; j < 32; ++j) {
    block[4 + j] = static_cast<std::byte>(codes[j] | codes[j + 32] << 4);
  }
}

}  // namespace headrace
