// Command line values that CLI11 does not parse by itself.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/checkpoint/quantized_checkpoint.h"
#include "engine/ops/cpu/kernels.h"
#include "runtime/run.h"

namespace headrace {

// "900MiB", "8GiB", "1.5GB", "4096": bytes. Throws UsageError naming the option.
uint64_t parse_size(const std::string& option, const std::string& text);
// "10,14": positive whole numbers. Throws UsageError naming the option.
std::vector<int> parse_list(const std::string& option, const std::string& text);

// Checks of an option's number, with a message for people.
CLI::Validator positive_number();
CLI::Validator batch_size();
// Clocks count nanoseconds in 64 bits.
CLI::Validator seconds_to_wait();
CLI::Validator number_from_0();
CLI::Validator number_from_0_to_1();
// "auto", "cpu", "cuda" or "cuda:0".
CLI::Validator is_device();
// auto, off, on, or a share from 0 to 1.
CLI::Validator is_host_attention();
// Nothing for auto. Throws UsageError.
std::optional<HostShare> parse_host_attention(const std::string& text);

// Options that several subcommands have; the value must outlive the app.
void add_weights_option(CLI::App& sub, WeightFormat& format);
void add_kv_option(CLI::App& sub, KvFormat& format);
void add_target_option(CLI::App& sub, std::string& target);

}  // namespace headrace
