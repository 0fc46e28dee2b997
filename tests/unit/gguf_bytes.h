// The parts of GGUF files as bytes, to build good and broken ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/unit/model_files.h"

namespace headrace::test {

inline std::string text(const std::string& value) { return le<uint64_t>(value.size()) + value; }
inline std::string entry(const std::string& key, uint32_t type, const std::string& value) {
  return text(key) + le(type) + value;
}
inline std::string array(const std::string& key, uint32_t type, uint64_t count,
                         const std::string& items) {
  return entry(key, 9, le(type) + le(count) + items);
}
inline std::string tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type,
                          uint64_t offset) {
  std::string bytes = text(name) + le(static_cast<uint32_t>(dims.size()));
  for (uint64_t dim : dims) bytes += le(dim);
  return bytes + le(type) + le(offset);
}

}  // namespace headrace::test
