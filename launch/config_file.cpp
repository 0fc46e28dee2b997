#include "launch/config_file.h"

#include <filesystem>
#include <fstream>
#include <map>

#include "launch/config_lines.h"
#include "launch/default_paths.h"
#include "runtime/error.h"

namespace headrace {
namespace {

constexpr const char* kName = "--config";

std::string joined(const std::vector<std::string>& values) {
  std::string text;
  for (const std::string& value : values) text += (text.empty() ? "" : ",") + value;
  return text;
}

std::vector<ConfigLine> read(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    throw UsageError("--config " + path + ": no such file; give a TOML file of options");
  }
  std::ifstream file(path);
  if (!file) {
    throw UsageError("--config " + path + ": the file cannot be read; check its permissions");
  }
  return read_config_lines(file, path);
}

// A switch is on, off or wrong; a list may stand as [10, 14] or as "10,14".
void set(CLI::Option& option, const ConfigLine& line, const std::string& place) {
  const bool is_switch = option.get_expected_min() == 0;
  const std::string value = joined(line.values);
  if (value.empty()) throw UsageError(place + " has no value; write " + line.name + " = ...");
  if (is_switch && value != "true" && value != "false") {
    throw UsageError(place + " is a switch; write true or false, not " + value);
  }
  if (!is_switch || value == "true") option.add_result(value);
}

void take(CLI::App& sub, const std::string& path) {
  std::map<std::string, int> seen;
  for (const ConfigLine& line : read(path)) {
    const std::string place = path + ": line " + std::to_string(line.line) + ": " + line.name;
    CLI::Option* option = sub.get_option_no_throw("--" + line.name);
    if (!option || line.name == "config" || line.name == "help") {
      throw UsageError(place + " is not an option of headrace " + sub.get_name() +
                       "; see headrace " + sub.get_name() + " --help");
    }
    const auto [first, is_new] = seen.emplace(line.name, line.line);
    if (!is_new) {
      throw UsageError(place + " stands twice, also in line " + std::to_string(first->second) +
                       "; keep one");
    }
    if (option->empty()) set(*option, line, place);
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
