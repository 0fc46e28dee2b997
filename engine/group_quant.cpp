#include "engine/group_quant.h"

#include <array>
#include <cstring>

namespace headrace {

void quantize_block(std::span<const float, kQuantGroup> x, int bits, std::byte* block) {
  std::array<uint8_t, kQuantGroup> codes;
  const GroupScale scale = quantize_group(x.data(), kQuantGroup, (1 << bits) - 1, codes.data());
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
