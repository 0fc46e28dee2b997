// Where headrace puts files when nobody says.
#pragma once

#include <string>

namespace headrace {

// $XDG_CACHE_HOME/headrace/offload, or ~/.cache/headrace/offload. Throws UsageError where the user
// has no home directory.
std::string default_offload_directory();

// A file that lies in the directory of this program.
std::string beside_program(const std::string& name);

}  // namespace headrace
