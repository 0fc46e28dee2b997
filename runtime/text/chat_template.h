// Chat messages -> prompt text, for the template families headrace knows.
//
// A model's template is a Jinja program; headrace does not run it but recognises the family from
// its text (ChatML, Llama-3) and keeps the model's own default system message.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/requests/request.h"

namespace headrace {

class ChatTemplate {
 public:
  // Recognises `template_text` (from the model). Returns nullopt if it is empty or unknown.
  static std::optional<ChatTemplate> recognise(std::string_view template_text,
                                               std::string_view bos_token);
  // By the name a user gives to --chat-template: "chatml" or "llama3". nullopt: not a known name.
  static std::optional<ChatTemplate> named(std::string_view name, std::string_view bos_token);
  static std::string known_names();

  // The prompt, ending with the header of the assistant's turn. A final message with role
  // "assistant" is left open, to be continued by the model (prefill). The text holds the special
  // tokens the template asks for, BOS too: encode it without Tokenizer::prefix() and suffix().
  std::string render(const std::vector<ChatMessage>& messages) const;

  const std::string& name() const { return name_; }
  // The system message used when the conversation has none; empty: none is put in.
  const std::string& default_system() const { return default_system_; }

 private:
  std::string name_;
  std::string bos_;
  std::string default_system_;
  bool has_default_system_ = false;
  bool trims_content_ = false;
};

}  // namespace headrace
