// Chat templates against what transformers' apply_chat_template made of them.
#include "runtime/text/chat_template.h"

#include <gtest/gtest.h>

#include "tests/unit/text_test_util.h"

namespace headrace {
namespace {

using nlohmann::json;

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += part;
  return text;
}

std::vector<ChatMessage> messages_of(const json& list) {
  std::vector<ChatMessage> messages;
  for (const json& item : list) {
    messages.push_back({item["role"].get<std::string>(), item["content"].get<std::string>()});
  }
  return messages;
}

TEST(ChatTemplate, RendersAsTransformersDoes) {
  const json goldens = test::read_json(test::text_data("chat.json"));
  ASSERT_EQ(goldens["templates"].size(), 9u);
  ASSERT_EQ(goldens["chats"].size(), 72u);
  for (const json& chat : goldens["chats"]) {
    const auto name = chat["template"].get<std::string>();
    const json& source = goldens["templates"][name];
    const auto found = ChatTemplate::recognise(source["text"].get<std::string>(),
                                               source["bos_token"].get<std::string>());
    ASSERT_TRUE(found) << name;
    EXPECT_EQ(found->name(), name == "llama3" ? "llama3" : "chatml");
    EXPECT_EQ(found->render(messages_of(chat["messages"])), chat["prompt"].get<std::string>())
        << name << chat["messages"];
  }
}

TEST(ChatTemplate, KeepsTheModelsDefaultSystemMessage) {
  const json templates = test::read_json(test::text_data("chat.json"))["templates"];
  const auto default_of = [&](const char* name) {
    return ChatTemplate::recognise(templates[name]["text"].get<std::string>(), "")
        ->default_system();
  };
  EXPECT_EQ(default_of("SmolLM2-135M-Instruct.Q4_1.gguf"),
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  EXPECT_EQ(default_of("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
  EXPECT_EQ(default_of("chatml"), "");
}

TEST(ChatTemplate, ByName) {
  const std::vector<ChatMessage> hello = {{"user", "Hello "}};
  EXPECT_EQ(ChatTemplate::named("chatml", "<s>")->render(hello),
            "<|im_start|>user\nHello <|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(ChatTemplate::named("llama3", "<|begin_of_text|>")->render(hello),
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_FALSE(ChatTemplate::named("llama2", ""));
  EXPECT_FALSE(ChatTemplate::named("", ""));
  EXPECT_EQ(ChatTemplate::known_names(), "chatml, llama3");
}

// Each differs from a known template by one thing that would change the prompt.
TEST(ChatTemplate, DoesNotTakeOthersForKnownOnes) {
  const std::string loop = "{% for message in messages %}";
  const std::string message =
      "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}";
  const std::string end = "{% endfor %}";
  const std::string puts =
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
  ASSERT_TRUE(ChatTemplate::recognise(join({loop, message, end, puts}), ""));
  const std::vector<std::string> unknown = {
      "",
      "{{ messages }}",
      join({loop, message, end}),
      join({loop, message, end, puts, "x"}),
      join({"x", loop, message, end, puts}),
      join({loop, "\n\n", message, end, puts}),
      join({loop, message, message, end, puts}),
      join({loop, "{% if message['role'] == 'user' %}", message, "{% endif %}", end, puts}),
      join({"{% for message in messages[1:] %}", message, end, puts}),
      join({"{% set ns = namespace(x=1) %}", loop, message, end, puts}),
      join({"{% set content = 'a' %}", loop, message, end, puts}),
      join({"{{ '<|im_start|>system\\nAlways.<|im_end|>\\n' }}", loop, message, end, puts}),
      join({"{{ strftime_now('%d') }}", loop, message, end, puts}),
      join({loop,
            "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] | upper + "
            "'<|im_end|>' + '\\n'}}",
            end, puts}),
      join({loop, message, end,
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"}),
      join({loop,
            "{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
            "'<|im_end|>'}}",
            end,
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"}),
      join({loop, message, puts}),  // no endfor
      join({loop, message, end, puts, "{% endif %}"}),
      join({loop, message, end, puts, "{{ 'open"}),
      join({loop, message, end, puts, "{% if"}),
      join({loop, message, end, puts, "{#"}),
      "{% for message in messages %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endfor %}",
      // Llama-3.1 puts a system block with dates before everything.
      "{{- bos_token }}{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}"
      "{{- \"Cutting Knowledge Date: December 2023\\n\" }}{%- for message in messages %}"
      "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ "
      "message['content'] | trim + '<|eot_id|>' }}{%- endfor %}",
  };
  for (const std::string& text : unknown) {
    EXPECT_FALSE(ChatTemplate::recognise(text, "<s>")) << text;
  }
}

// Every beginning of a real template, and every template with one character missing, must be read
// without harm; whatever is recognised must still be a whole template.
TEST(ChatTemplate, SurvivesDamagedTemplates) {
  const json templates = test::read_json(test::text_data("chat.json"))["templates"];
  for (const auto& [name, source] : templates.items()) {
    const auto text = source["text"].get<std::string>();
    for (size_t i = 0; i + 2 < text.size(); ++i) {
      EXPECT_FALSE(ChatTemplate::recognise(text.substr(0, i), "")) << name << " cut at " << i;
      std::string damaged = text;
      damaged.erase(i, 1);
      const auto found = ChatTemplate::recognise(damaged, "");
      if (found) {
        EXPECT_FALSE(found->render({{"user", "x"}}).empty());
      }
    }
  }
}

}  // namespace
}  // namespace headrace
