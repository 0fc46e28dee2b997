// Changed copies of valid inputs: the same for the same seed, on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace headrace::fuzz {

// One of `seeds` (not empty) with one to six changes, more often near its beginning, where headers
// are: bits and bytes, binary and decimal numbers, pieces of syntax; parts that are gone, twice,
// elsewhere or from another seed; a torn end.
std::string mutated(const std::vector<std::string>& seeds, uint64_t seed);

}  // namespace headrace::fuzz
