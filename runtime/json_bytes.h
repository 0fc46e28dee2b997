// JSON as a message between ranks.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace headrace {

inline Bytes text_bytes(const std::string& text) {
  Bytes bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

// What is not UTF-8 (a host's or processor's name may be anything) becomes U+FFFD.
inline Bytes to_bytes(const nlohmann::json& value) {
  return text_bytes(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

inline nlohmann::json from_bytes(const Bytes& bytes) {
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  return nlohmann::json::parse(text, text + bytes.size());
}

// Every rank calls it: what each has said, by rank, on all of them.
inline std::vector<nlohmann::json> share_with_all(Communicator& ranks, const nlohmann::json& mine) {
  nlohmann::json all = nlohmann::json::array();
  for (const Bytes& one : gather(ranks, to_bytes(mine))) all.push_back(from_bytes(one));
  return from_bytes(broadcast(ranks, to_bytes(all)));
}

}  // namespace headrace
