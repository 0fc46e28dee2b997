#include "runtime/schedule/stream_key.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string>

namespace headrace {

// The choice is hashed as bytes: as XXH3's seed it would only be added to short inputs, and the
// second choice of one request could share its stream with the first of another.
uint64_t stream_key(std::string_view custom_id, int choice) {
  std::string bytes(custom_id);
  for (int shift = 0; shift < 32; shift += 8) {
    bytes += static_cast<char>(static_cast<uint32_t>(choice) >> shift & 0xFF);
  }
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace headrace
