// Text with names from models and requests in it, for a terminal.
#pragma once

#include <string>

namespace headrace {

// Control characters other than line breaks and tabs become '?': nothing in a name is for the
// terminal to obey.
std::string shown(std::string text);

}  // namespace headrace
