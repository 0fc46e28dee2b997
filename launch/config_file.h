// Options of a subcommand from a TOML file.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace headrace {

// Adds --config FILE to `sub`. Each "name = value" of the file stands for --name value; the command
// line wins, wherever on it --config stands. Call it after the other options are added. Parsing
// throws UsageError naming the file, the line and the key.
void add_config_option(CLI::App& sub);

}  // namespace headrace
