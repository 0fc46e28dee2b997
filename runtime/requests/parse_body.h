// The "body" of a request: what the OpenAI completion and chat endpoints take, and the sampling
// parameters that other servers add (top_k, min_p, repetition_penalty, ignore_eos).
//
// Source of names and ranges: the OpenAI API reference, "Create completion" and "Create chat
// completion"; `null` means "not given" there and here. A parameter that headrace does not have is
// refused unless its value asks for nothing, and so is an unknown key: dropping it silently would
// give other text than was asked for.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/requests/request.h"

namespace headrace {

// Fills all but custom_id and endpoint of `request`, whose defaults are already in place.
// `path` goes before field names in messages ("body." or ""). Throws RequestFault.
void parse_body(const nlohmann::json& body, const std::string& path, Request& request);

// The list of a chat completion's messages; "developer" becomes "system", text parts one text.
std::vector<ChatMessage> parse_messages(const nlohmann::json& list, const std::string& field);

}  // namespace headrace
