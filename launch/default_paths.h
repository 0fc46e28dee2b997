// Where headrace puts files when nobody says.
#pragma once

#include <string>

namespace headrace {

// $XDG_CACHE_HOME/headrace/offload, or ~/.cache/headrace/offload. Throws UsageError where the user
// has no home directory.
std::string default_offload_directory();

}  // namespace headrace
