// Paths as people give them, and where headrace puts files when nobody says.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace headrace {

// Adds an option that is a path: a ~ before its first slash is the user's home directory, also
// where no shell has replaced it, as in a file of options or in --disk=~/offload.
CLI::Option* add_path_option(CLI::App& sub, const std::string& name, std::string& path,
                             const std::string& description);
// What such an option does to its text.
CLI::Validator home_path();

// $XDG_CACHE_HOME/headrace/offload, or ~/.cache/headrace/offload. Empty where the user has no home
// directory.
std::string default_offload_directory();

// A file that lies in the directory of this program.
std::string beside_program(const std::string& name);

}  // namespace headrace
