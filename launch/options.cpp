#include "launch/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "engine/ops/attention.h"
#include "runtime/error.h"

namespace headrace {
namespace {

CLI::Validator number_check(const std::string& what, double least, double most) {
  return CLI::Validator(
      [=](const std::string& text) -> std::string {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && value >= least && value <= most) return "";
        return text + " is not " + what;
      },
      "");
}

constexpr double kMost = std::numeric_limits<double>::max();

}  // namespace

CLI::Validator positive_number() {
  return number_check("a number above 0", std::numeric_limits<double>::min(), kMost);
}
CLI::Validator batch_size() {
  return number_check("a number from 1 to " + std::to_string(kLargestBatch), 1, kLargestBatch);
}
CLI::Validator seconds_to_wait() {
  return number_check("a number of seconds above 0, at most 100000000",
                      std::numeric_limits<double>::min(), 1e8);
}
CLI::Validator number_from_0() { return number_check("a number from 0 on", 0, kMost); }
CLI::Validator number_from_0_to_1() { return number_check("a number from 0 to 1", 0, 1); }

CLI::Validator is_device() {
  return CLI::Validator(
      [](const std::string& text) -> std::string {
        if (text == "auto" || text == "cpu" || text == "cuda") return "";
        const bool is_numbered = text.starts_with("cuda:") && text.size() > 5 && text.size() < 9;
        const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
        if (is_numbered && std::all_of(text.begin() + 5, text.end(), is_digit)) return "";
        return text + " is not a device; write auto, cpu, cuda or cuda:0";
      },
      "");
}

CLI::Validator is_host_attention() {
  return CLI::Validator(
      [](const std::string& text) -> std::string {
        try {
          parse_host_attention(text);
          return "";
        } catch (const UsageError& e) {
          return e.what();
        }
      },
      "");
}

std::optional<HostShare> parse_host_attention(const std::string& text) {
  if (text == "auto") return std::nullopt;
  if (text == "off") return HostShare{0, 0};
  if (text == "on") return HostShare{0, 1};
  double share = -1;
  const char* end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, share);
  if (error != std::errc() || next != end || !(share >= 0 && share <= 1)) {
    throw UsageError(text + " is not a way of host attention; write auto, off, on or a share, 0.5");
  }
  return HostShare{share, share};
}

uint64_t parse_size(const std::string& option, const std::string& text) {
  static const std::map<std::string, double> kUnits = {
      {"", 1},        {"B", 1},         {"K", 1024},       {"KiB", 1024},
      {"M", 1048576}, {"MiB", 1048576}, {"KB", 1e3},       {"MB", 1e6},
      {"GB", 1e9},    {"TB", 1e12},     {"G", 1073741824}, {"GiB", 1073741824},
      {"T", 0x1p40},  {"TiB", 0x1p40}};
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, value);
  const auto unit = kUnits.find(std::string(next, end));
  if (error != std::errc() || unit == kUnits.end() || !(value * unit->second >= 1) ||
      value * unit->second > 0x1p62) {
    throw UsageError(option + " " + text +
                     " is not a size; write it as 900MiB, 8GiB or a number of bytes");
  }
  return static_cast<uint64_t>(std::llround(value * unit->second));
}

std::vector<int> parse_list(const std::string& option, const std::string& text) {
  std::vector<int> values;
  const char* next = text.data();
  const char* end = next + text.size();
  while (next < end) {
    int value = 0;
    const auto [after, error] = std::from_chars(next, end, value);
    if (error != std::errc() || value <= 0 ||
        (after != end && (*after != ',' || after + 1 == end))) {
      throw UsageError(option + " " + text +
                       " is not a list of positive numbers; write it as 10,14");
    }
    values.push_back(value);
    next = after + (after != end);
  }
  return values;
}

void add_weights_option(CLI::App& sub, WeightFormat& format) {
  sub.add_option_function<std::string>(
         "--weights", [&format](const std::string& name) { format = weight_format_of(name); },
         "Format of the large matrices: as the model has them, or quantised to 8 or 4 bits")
      ->check(CLI::IsMember({"native", "q8", "q4"}))
      ->default_str(weight_format_name(format));
}

void add_kv_option(CLI::App& sub, KvFormat& format) {
  sub.add_option_function<std::string>(
         "--kv", [&format](const std::string& name) { format = kv_format_of(name); },
         "Format of the KV cache")
      ->check(CLI::IsMember({"f16", "f32", "q8", "q4"}))
      ->default_str(kv_format_name(format));
}

void add_target_option(CLI::App& sub, std::string& target) {
  sub.add_option("--target", target, "Vector instructions: auto, avx512, avx2 or scalar")
      ->check(CLI::IsMember({"auto", "avx512", "avx2", "scalar"}))
      ->capture_default_str();
}

}  // namespace headrace
