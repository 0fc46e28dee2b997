// The plain definition of group-wise quantisation (engine/group_quant.h): one group at a time, in
// the compiler's own half type. The oracle of what a quantised checkpoint and the KV cache store.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/checkpoint/dtype.h"

namespace headrace::reference {

struct Group {
  _Float16 scale = 0, minimum = 0;
  std::vector<int> codes;

  // Element i as it is read back.
  float value(size_t i) const;
};

// `levels` is 255 or 15; no element is infinite.
Group quantize(std::span<const float> x, int levels);

// A row of G8 or G4 as a quantised checkpoint gives it; a multiple of 64 floats.
std::vector<std::byte> quantize_row(DType dtype, std::span<const float> row);

}  // namespace headrace::reference
