// XXH3-64 of a sequence of values: what fingerprints are made with.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace headrace {

// Feeds values to the hash in a fixed byte order and width.
class Hasher {
 public:
  Hasher() { XXH3_64bits_reset(&state_); }

  void bytes(std::span<const std::byte> data) {
    XXH3_64bits_update(&state_, data.data(), data.size());
  }
  void integer(uint64_t value) {
    std::byte data[8];
    for (int i = 0; i < 8; ++i) data[i] = static_cast<std::byte>(value >> (8 * i));
    bytes(data);
  }
  void real(double value) { integer(std::bit_cast<uint64_t>(value)); }
  void text(std::string_view value) {
    integer(value.size());
    bytes(std::as_bytes(std::span(value)));
  }

  std::string digest() const {
    const uint64_t hash = XXH3_64bits_digest(&state_);
    std::string hex(16, '0');
    for (int i = 0; i < 16; ++i) {
      hex[static_cast<size_t>(i)] = "0123456789abcdef"[(hash >> (60 - 4 * i)) & 15];
    }
    return hex;
  }

 private:
  XXH3_state_t state_;
};

}  // namespace headrace
