// JSON as a message between ranks.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "comm/communicator.h"

namespace headrace {

inline Bytes text_bytes(const std::string& text) {
  Bytes bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

inline Bytes to_bytes(const nlohmann::json& value) { return text_bytes(value.dump()); }

inline nlohmann::json from_bytes(const Bytes& bytes) {
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  return nlohmann::json::parse(text, text + bytes.size());
}

}  // namespace headrace
