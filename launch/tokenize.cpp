// headrace tokenize: text to token ids and back.

#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/subcommands.h"
#include "runtime/error.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace headrace {
namespace {

struct TokenizeArguments {
  std::string model, text;
  std::vector<int> decode;
  bool chat = false;
  bool pieces = false;
};

void tokenize(const TokenizeArguments& a, bool has_text) {
  const auto tokenizer = Tokenizer::open(a.model);
  if (!tokenizer)
    throw UsageError(a.model +
                     " has no tokenizer; give a model with tokenizer.json, or a GGUF file");
  if (!a.decode.empty()) {
    for (const int id : a.decode) {
      if (id >= 0 && id < tokenizer->vocab_size()) continue;
      throw UsageError("--decode " + std::to_string(id) + ": " + a.model + " has token ids 0 to " +
                       std::to_string(tokenizer->vocab_size() - 1));
    }
    std::cout << tokenizer->decode(a.decode, false) << '\n';
    return;
  }
  std::string text = has_text ? a.text : std::string(std::istreambuf_iterator<char>(std::cin), {});
  if (a.chat) {
    const auto chat = ChatTemplate::recognise(tokenizer->chat_template(), tokenizer->bos_token());
    if (!chat)
      throw UsageError(a.model + " has no chat template that headrace knows (" +
                       ChatTemplate::known_names() + ")");
    text = chat->render({{"user", text}});
  }
  std::vector<int> ids;
  try {
    ids = tokenizer->encode(text);
  } catch (const std::invalid_argument& e) {
    throw UsageError(std::string("the text cannot be tokenized: ") + e.what());
  }
  if (!a.pieces) {
    std::cout << nlohmann::json(ids).dump() << '\n';
    return;
  }
  for (const int id : ids) {
    const nlohmann::json piece = tokenizer->decode(std::vector{id}, false);
    std::cout << id << '\t' << piece.dump() << '\n';
  }
}

}  // namespace

void add_tokenize(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<TokenizeArguments>();
  CLI::App* sub = app.add_subcommand("tokenize", "Turn text into token ids, or ids into text");
  add_path_option(*sub, "--model", a->model, "Hugging Face directory or GGUF file")->required();
  CLI::Option* text = sub->add_option("text,--text", a->text, "The text (default: standard input)");
  sub->add_option("--decode", a->decode, "Token ids to turn into text")->delimiter(',');
  sub->add_flag("--chat", a->chat, "Put the text into the model's chat template first");
  sub->add_flag("--pieces", a->pieces, "One token a line, with its text");
  sub->footer(
      "Examples:\n  headrace tokenize --model model.gguf \"Hello world\"\n"
      "  headrace tokenize --model model.gguf --decode 9707,1879");
  sub->callback([a, text, &exit_code] {
    tokenize(*a, text->count() > 0);
    exit_code = kExitDone;
  });
}

}  // namespace headrace
