#include "runtime/text/chat_template.h"

#include <algorithm>
#include <array>

#include "runtime/text/jinja_outline.h"
#include "runtime/text/utf8.h"

namespace headrace {
namespace {

constexpr std::string_view kChatMl = "chatml";
constexpr std::string_view kLlama3 = "llama3";
constexpr std::string_view kChatMlStart = "<|im_start|>";
constexpr std::string_view kChatMlEnd = "<|im_end|>\n";

// Conditions that render() reproduces; a template with any other one is unknown.
constexpr std::string_view kPuts = "add_generation_prompt";
constexpr std::string_view kPutsDefault = "not add_generation_prompt is defined";
constexpr std::string_view kNoSystem = "loop.first and messages.0.role != 'system'";
constexpr std::string_view kFirstIsSystem = "messages.0.role == 'system'";
constexpr std::string_view kEveryMessageButFirstSystem =
    "( message.role == 'user' ) or ( message.role == 'system' and not loop.first ) or "
    "( message.role == 'assistant' and not message.tool_calls )";
constexpr std::string_view kClosedUnlessLast =
    "( loop.last and add_generation_prompt ) or not loop.last";
constexpr std::string_view kFirstMessage = "loop.index0 == 0";

bool has(const JinjaOutline& outline, std::string_view condition) {
  return std::count(outline.conditions.begin(), outline.conditions.end(), condition) > 0;
}

bool only(const JinjaOutline& outline, std::initializer_list<std::string_view> allowed) {
  return std::all_of(outline.conditions.begin(), outline.conditions.end(), [&](const auto& c) {
    return std::find(allowed.begin(), allowed.end(), c) != allowed.end();
  });
}

bool take(std::string_view& text, const std::string& start) {
  if (!text.starts_with(start)) return false;
  text.remove_prefix(start.size());
  return true;
}

// str.strip() of Python, which is what Jinja's trim does.
bool is_python_space(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string_view trim(std::string_view text) {
  size_t begin = text.size();
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    if (is_python_space(next_character(text, at))) continue;
    begin = std::min(begin, here);
    end = at;
  }
  return begin < end ? text.substr(begin, end - begin) : std::string_view();
}

struct ChatMlShape {
  bool bos = false;
  bool trims = false;
  bool has_default = false;
  std::string default_system;
};

// [bos] [system of the first message] [default system] message, assistant's header.
std::optional<ChatMlShape> chatml_shape(const JinjaOutline& outline) {
  if (!only(outline, {kPuts, kPutsDefault, kNoSystem, kFirstIsSystem, kEveryMessageButFirstSystem,
                      kClosedUnlessLast}) ||
      !has(outline, kPuts)) {
    return std::nullopt;
  }
  const std::string start(kChatMlStart);
  const std::string end(kChatMlEnd);
  const std::string system = start + "system\n";
  ChatMlShape shape;
  std::string_view text = outline.text;
  shape.bos = take(text, std::string(1, JinjaOutline::kBos));
  const bool own_branch = take(text, system + JinjaOutline::kFirstContent + end);
  if (own_branch != has(outline, kFirstIsSystem) ||
      own_branch != has(outline, kEveryMessageButFirstSystem)) {
    return std::nullopt;
  }
  if (take(text, system)) {
    const size_t stop = text.find(end);
    if (stop == std::string_view::npos) return std::nullopt;
    shape.has_default = true;
    shape.default_system = text.substr(0, stop);
    text.remove_prefix(stop + end.size());
    const auto is_mark = [](char c) { return c > 0 && c <= JinjaOutline::kVariable; };
    if (std::any_of(shape.default_system.begin(), shape.default_system.end(), is_mark)) {
      return std::nullopt;
    }
  }
  // Without a branch of its own, the default must be guarded by "the first message is no system".
  if (!own_branch && shape.has_default != has(outline, kNoSystem)) return std::nullopt;
  if (own_branch && has(outline, kNoSystem)) return std::nullopt;

  const std::string header = start + JinjaOutline::kRole + "\n";
  shape.trims = text.starts_with(header + JinjaOutline::kTrimmedContent);
  const char content = shape.trims ? JinjaOutline::kTrimmedContent : JinjaOutline::kContent;
  if (text != header + content + end + start + "assistant\n") return std::nullopt;
  return shape;
}

// content = header, trimmed content, end of turn; before the first one the BOS token.
bool is_llama3(const JinjaOutline& outline) {
  using O = JinjaOutline;
  const std::string expected = std::string(1, O::kAssign) + "<|start_header_id|>" + O::kRole +
                               "<|end_header_id|>\n\n" + O::kTrimmedContent + "<|eot_id|>" +
                               O::kAssign + O::kBos + O::kVariable + O::kVariable +
                               "<|start_header_id|>assistant<|end_header_id|>\n\n";
  return outline.text == expected && has(outline, kFirstMessage) &&
         only(outline, {kFirstMessage, kPuts});
}

}  // namespace

std::optional<ChatTemplate> ChatTemplate::recognise(std::string_view template_text,
                                                    std::string_view bos_token) {
  const auto outline = outline_jinja(template_text);
  if (!outline || outline->text.empty()) return std::nullopt;
  if (is_llama3(*outline)) return named(kLlama3, bos_token);
  const auto shape = chatml_shape(*outline);
  if (!shape) return std::nullopt;
  ChatTemplate found;
  found.name_ = kChatMl;
  if (shape->bos) found.bos_ = bos_token;
  found.has_default_system_ = shape->has_default;
  found.default_system_ = shape->default_system;
  found.trims_content_ = shape->trims;
  return found;
}

std::optional<ChatTemplate> ChatTemplate::named(std::string_view name, std::string_view bos_token) {
  ChatTemplate found;
  found.name_ = name;
  if (name == kChatMl) return found;
  if (name != kLlama3) return std::nullopt;
  found.bos_ = bos_token;
  found.trims_content_ = true;
  return found;
}

std::string ChatTemplate::known_names() {
  return std::string(kChatMl) + ", " + std::string(kLlama3);
}

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages) const {
  const bool llama3 = name_ == kLlama3;
  const auto header = [&](std::string_view role) {
    return llama3 ? "<|start_header_id|>" + std::string(role) + "<|end_header_id|>\n\n"
                  : std::string(kChatMlStart) + std::string(role) + "\n";
  };
  const std::string_view end = llama3 ? "<|eot_id|>" : kChatMlEnd;

  std::string text = bos_;
  if (has_default_system_ && (messages.empty() || messages.front().role != "system")) {
    text += header("system") + default_system_;
    text += end;
  }
  for (const ChatMessage& message : messages) {
    text += header(message.role);
    text += trims_content_ ? trim(message.content) : std::string_view(message.content);
    const bool left_open = &message == &messages.back() && message.role == "assistant";
    if (left_open) return text;
    text += end;
  }
  return text + header("assistant");
}

}  // namespace headrace
