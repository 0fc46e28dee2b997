// Configurations of published models by name, for synthetic weights.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/model/config.h"

namespace headrace {

// The configuration of a named shape ("opt-6.7b", "llama-3-8b", "tiny-llama"). Throws ModelError
// with the list of names if there is no such shape.
ModelConfig named_shape(std::string_view name);

// All names, family by family, small to large.
std::vector<std::string> shape_names();

}  // namespace headrace
