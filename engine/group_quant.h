// Group-wise asymmetric quantisation to 8 or 4 bits, for weights and for the KV cache.
//
// A group of up to 64 consecutive floats becomes an f16 scale d, an f16 minimum m and one code
// q per element in 0 .. levels (255 or 15); the element is then d*q + m, a float32 multiplication
// and an addition, each rounded (the formula of ggml's Q4_1). The rule, with lo and hi the least
// and the largest element, all in float32:
//   m = lo rounded to f16, at most 65504 in magnitude; never -0
//   d = (hi - m) / levels rounded to f16, at most 65504, 0 if hi <= m; the next f16 above it where
//       (hi - m) / d would still exceed levels + 1/2, as it may for subnormal d
//   q = (x - m) / d rounded to nearest, ties to even, clamped to 0 .. levels; 0 if d is 0
// So a constant group is exact to f16, and an element is off by at most d/2 and the rounding of m
// as long as the group lies within +-65504. A group with a NaN becomes NaN as a whole.
//
// As stored ("G8", "G4" in dtype.h): d, m, then 64 bytes, element by element; or 32 bytes, byte j
// holding elements j (low four bits) and j + 32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace headrace {

inline constexpr int kQuantGroup = 64;  // elements

struct GroupScale {
  uint16_t scale;    // f16
  uint16_t minimum;  // f16
};

// codes[x.size()] receives the codes. x holds 1 to 64 floats, none infinite. `levels` is 255 or 15.
GroupScale quantize_group(std::span<const float> x, int levels, uint8_t* codes);

// One stored block of 64 elements: 68 bytes (8 bits) or 36 bytes (4 bits) to `block`.
void quantize_block(std::span<const float, kQuantGroup> x, int bits, std::byte* block);

}  // namespace headrace
