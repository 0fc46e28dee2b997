// Command line values that CLI11 does not parse by itself.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace headrace {

// "900MiB", "8GiB", "1.5GB", "4096": bytes. Throws UsageError naming the option.
uint64_t parse_size(const std::string& option, const std::string& text);
// "10,14": positive whole numbers. Throws UsageError naming the option.
std::vector<int> parse_list(const std::string& option, const std::string& text);

// Checks of an option's number, with a message for people.
CLI::Validator positive_number();
CLI::Validator number_from_0();
CLI::Validator number_from_0_to_1();

}  // namespace headrace
