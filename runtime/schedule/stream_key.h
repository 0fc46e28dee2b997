// Names the random stream of one choice of one request.
#pragma once

#include <cstdint>
#include <string_view>

namespace headrace {

// XXH3-64 of the custom_id and the choice (4 bytes, little-endian): the same in every run and on
// every machine.
uint64_t stream_key(std::string_view custom_id, int choice);

}  // namespace headrace
