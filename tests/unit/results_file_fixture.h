// A results file in a directory of its own, and a process to use it from.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>

#include "runtime/results/results_file.h"
#include "tests/unit/child_process.h"

namespace headrace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using test::in_child;

class ResultsFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        fs::path(::testing::TempDir()) / ("headrace_results_" + std::to_string(::getpid()));
    fs::create_directories(directory_);
    path_ = directory_ / "out.jsonl";
    manifest_.model_name = "m";
    manifest_.model_fingerprint = "f00";
    manifest_.numerics = "kv=f16";
  }
  void TearDown() override { fs::remove_all(directory_); }

  ResultsFile open(bool resume = false) {
    ResultsFile::Options options;
    options.path = path_;
    options.resume = resume;
    return ResultsFile(std::move(options), manifest_);
  }

  static RequestResult result(const std::string& id) {
    RequestResult made;
    made.custom_id = id;
    made.prompt_tokens = 3;
    made.choices = {ChoiceResult{"text of " + id, {1, 2}, "length", {}, {}}};
    return made;
  }

  std::string content() const { return read(path_); }
  static std::string read(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }
  static void write(const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }

  // How often each id stands in the file; every line must be a whole record.
  std::map<std::string, int> ids() const {
    std::map<std::string, int> counts;
    std::istringstream lines(content());
    for (std::string line; std::getline(lines, line);) ++counts[Json::parse(line).at("custom_id")];
    return counts;
  }

  // The text of what `action` throws, which must be an `Error`.
  template <typename Error>
  static std::string thrown(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    } catch (const std::exception& error) {
      ADD_FAILURE() << "another type of error: " << error.what();
      return "";
    }
    ADD_FAILURE() << "nothing was thrown";
    return "";
  }
  static void expect_words(const std::string& text, std::initializer_list<std::string> words) {
    for (const std::string& word : words) {
      EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in: " << text;
    }
  }

  fs::path directory_, path_;
  Manifest manifest_;
};

}  // namespace headrace
