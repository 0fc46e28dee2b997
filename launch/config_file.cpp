#include "launch/config_file.h"

#include <toml++/toml.h>
#include <array>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "launch/default_paths.h"
#include "runtime/error.h"

namespace headrace {
namespace {

constexpr const char* kName = "--config";

std::string line_of(const std::string& path, const toml::source_region& source) {
  return path + ": line " + std::to_string(source.begin.line) + ": ";
}

toml::table read(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    throw UsageError("--config " + path + ": no such file; give a TOML file of options");
  }
  std::ifstream file(path);
  if (!file) {
    throw UsageError("--config " + path + ": the file cannot be read; check its permissions");
  }
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  try {
    return toml::parse(text);
  } catch (const toml::parse_error& e) {
    throw UsageError(line_of(path, e.source()) + std::string(e.description()) +
                     "; write each name once, as name = value, with text in quotes");
  }
}

// As it would stand on the command line: a list may be [10, 14] or "10,14".
std::string text_of(const toml::node& node, const std::string& place) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (const auto* number = node.as_floating_point()) {
    std::array<char, 32> digits;
    const auto end = std::to_chars(digits.begin(), digits.end(), number->get()).ptr;
    return {digits.begin(), end};
  }
  if (const auto* list = node.as_array()) {
    std::string text;
    for (const toml::node& one : *list) text += (text.empty() ? "" : ",") + text_of(one, place);
    return text;
  }
  if (node.is_table()) {
    throw UsageError(place +
                     " is a table; headrace reads plain name = value lines, remove its heading");
  }
  throw UsageError(place + " is a date or a time; write text in quotes");
}

void set(CLI::Option& option, const std::string& value, const std::string& place) {
  if (value.empty()) throw UsageError(place + " has no value; give it one, or take it out");
  const bool is_switch = option.get_expected_min() == 0;
  if (is_switch && value != "true" && value != "false") {
    throw UsageError(place + " is a switch; write true or false, not " + value);
  }
  if (!is_switch || value == "true") option.add_result(value);
}

void take(CLI::App& sub, const std::string& path) {
  for (const auto& [key, node] : read(path)) {
    const std::string name(key.str()), place = line_of(path, node.source()) + name;
    const std::string value = text_of(node, place);
    CLI::Option* option = sub.get_option_no_throw("--" + name);
    if (!option || name == "config" || name == "help") {
      throw UsageError(place + " is not an option of headrace " + sub.get_name() +
                       "; see headrace " + sub.get_name() + " --help");
    }
    if (option->empty()) set(*option, value, place);
  }
}

}  // namespace

void add_config_option(CLI::App& sub) {
  // Read when it is met. What the command line says after it comes last, and the last value counts.
  for (CLI::Option* option : sub.get_options()) {
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
  sub.add_option_function<std::string>(
         kName, [&sub](const std::string& path) { take(sub, path); },
         "TOML file with any of these options; the command line wins")
      ->type_name("FILE")
      ->transform(home_path())
      ->trigger_on_parse();
}

}  // namespace headrace
