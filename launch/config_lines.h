// The part of TOML that a file of options needs: name = value, with strings, lists, numbers, true
// and false, and comments.
#pragma once

#include <istream>
#include <string>
#include <vector>

namespace headrace {

struct ConfigLine {
  int line = 0;  // where its name stands, from 1
  std::string name;
  std::vector<std::string> values;  // as text; of a list all of them
};

// `path` is for messages. Throws UsageError that names file and line.
std::vector<ConfigLine> read_config_lines(std::istream& file, const std::string& path);

}  // namespace headrace
