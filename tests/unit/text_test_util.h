// Shared by the tests of runtime/text: goldens, files of the environment.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace headrace::test {

inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  return nlohmann::json::parse(file);
}

inline std::filesystem::path text_data(const std::string& name) {
  return std::filesystem::path(HEADRACE_TEST_DATA) / "text" / name;
}

// A file under the folder that an environment variable names; empty if either is missing.
inline std::string file_from(const char* variable, const std::string& name) {
  const char* folder = std::getenv(variable);
  if (folder == nullptr) return "";
  const std::filesystem::path path = std::filesystem::path(folder) / name;
  return std::filesystem::exists(path) ? path.string() : "";
}

}  // namespace headrace::test
