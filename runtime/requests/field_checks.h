// Reading one field of a request line: its value, or a RequestFault that names the field and says
// what is allowed. `field` is the name as messages show it ("body.temperature").
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace headrace {

// Why a line cannot be served, before it becomes a BadLine.
struct RequestFault : std::runtime_error {
  RequestFault(std::string fault_code, const std::string& message)
      : std::runtime_error(message), code(std::move(fault_code)) {}
  std::string code;
};

[[noreturn]] void throw_wrong(const std::string& field, const std::string& allowed,
                              const nlohmann::json& value);
[[noreturn]] void throw_invalid(const std::string& message);
[[noreturn]] void throw_unsupported(const std::string& field, const std::string& cure);

// A value or key as messages show it: short, ASCII.
std::string shown(const nlohmann::json& value);

// A whole number, also written as 5.0. nullopt: something else, or beyond int64.
std::optional<int64_t> integral(const nlohmann::json& value);

int whole(const nlohmann::json& value, const std::string& field, int low, int high);

// A number from low to high; -0 becomes 0. `allowed` says the range in words.
float number(const nlohmann::json& value, const std::string& field, float low, float high,
             const std::string& allowed);

bool flag(const nlohmann::json& value, const std::string& field);

}  // namespace headrace
