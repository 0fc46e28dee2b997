// What a chat template writes, without running it: its outputs in the order they stand in the text.
//
// Only the small part of Jinja that simple templates use is read; anything else gives nullopt, so a
// template is never mistaken for a simpler one.
// Syntax: Jinja's template designer documentation, with trim_blocks and lstrip_blocks set, as
// transformers does.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace headrace {

struct JinjaOutline {
  // Literal text with these marks where a value goes.
  static constexpr char kRole = '\x01';            // message.role
  static constexpr char kContent = '\x02';         // message.content
  static constexpr char kTrimmedContent = '\x03';  // message.content | trim
  static constexpr char kFirstContent = '\x04';    // messages[0].content
  static constexpr char kBos = '\x05';             // bos_token
  static constexpr char kAssign = '\x06';          // {% set content = %}, its value follows
  static constexpr char kVariable = '\x07';        // the variable "content"
  std::string text;
  // The conditions of the `if`s, in one spelling: message['role'] becomes message.role, strings
  // stand in single quotes, one space between words.
  std::vector<std::string> conditions;
};

// `elif` branches and the branch of `if tools` are left out: headrace passes no tools.
std::optional<JinjaOutline> outline_jinja(std::string_view text);

}  // namespace headrace
