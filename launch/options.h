// Command line values that CLI11 does not parse by itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace headrace {

// "900MiB", "8GiB", "1.5GB", "4096": bytes. Throws UsageError naming the option.
uint64_t parse_size(const std::string& option, const std::string& text);
// "10,14": positive whole numbers. Throws UsageError naming the option.
std::vector<int> parse_list(const std::string& option, const std::string& text);

}  // namespace headrace
