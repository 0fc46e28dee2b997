#include "runtime/schedule/stream_key.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace headrace {

uint64_t stream_key(std::string_view custom_id, int choice) {
  return XXH3_64bits_withSeed(custom_id.data(), custom_id.size(), static_cast<uint64_t>(choice));
}

}  // namespace headrace
