#include "launch/config_file.h"

#include <filesystem>
#include <set>

#include "runtime/error.h"

namespace headrace {
namespace {

constexpr const char* kName = "--config";

std::string joined(const std::vector<std::string>& values) {
  std::string text;
  for (const std::string& value : values) text += (text.empty() ? "" : ",") + value;
  return text;
}

std::vector<CLI::ConfigItem> read(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    throw UsageError("--config " + path + ": no such file; give a TOML file of options");
  }
  try {
    return CLI::ConfigTOML().from_file(path);
  } catch (const CLI::FileError&) {
    throw UsageError("--config " + path + ": the file cannot be read; check its permissions");
  }
}

// A switch is on, off or wrong; a list may stand as [10, 14] or as "10,14".
void set(CLI::Option& option, const CLI::ConfigItem& item, const std::string& place) {
  const bool is_switch = option.get_expected_min() == 0;
  const std::string value = joined(item.inputs);
  if (value.empty()) throw UsageError(place + " has no value; write " + item.name + " = ...");
  if (is_switch && value != "true" && value != "false") {
    throw UsageError(place + " is a switch; write true or false, not " + value);
  }
  if (!is_switch || value == "true") option.add_result(value);
}

void take(CLI::App& sub, const std::string& path) {
  std::set<std::string> seen;
  for (const CLI::ConfigItem& item : read(path)) {
    const std::string place = path + ": " + item.fullname();
    if (!item.parents.empty()) {
      throw UsageError(path + ": [" + item.parents.front() +
                       "] is a table; headrace reads plain name = value lines, remove its heading");
    }
    CLI::Option* option = sub.get_option_no_throw("--" + item.name);
    if (!option || item.name == "config" || item.name == "help") {
      throw UsageError(place + " is not an option of headrace " + sub.get_name() +
                       "; see headrace " + sub.get_name() + " --help");
    }
    if (!seen.insert(item.name).second) throw UsageError(place + " stands twice; keep one");
    if (option->empty()) set(*option, item, place);
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
      ->trigger_on_parse();
}

}  // namespace headrace
