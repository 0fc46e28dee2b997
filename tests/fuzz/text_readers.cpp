// Tokenizers: tokenizer.json with tokenizer_config.json, and the metadata of GGUF files.
#include <filesystem>

#include "engine/error.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "tests/fuzz/readers.h"
#include "tests/unit/gguf_tokenizer.h"
#include "tests/unit/model_files.h"
#include "tests/unit/text_test_util.h"

namespace headrace::fuzz {
namespace {

constexpr const char* kText =
    "Hello, it's  12345 wheels;\r\n\n caf\u00e9 <|im_start|> THEY'LL \U0001F600";

void use(const Tokenizer& tokenizer) {
  const std::vector<int> ids = tokenizer.encode(kText);
  for (const int id : ids) {
    promise(id >= 0 && id < tokenizer.vocab_size(), "a token outside the vocabulary");
  }
  (void)tokenizer.decode(ids, true);
  (void)tokenizer.description();
  const auto chat = ChatTemplate::recognise(tokenizer.chat_template(), tokenizer.bos_token());
  if (chat) (void)tokenizer.encode(chat->render({{"system", "s"}, {"user", kText}}));
}

bool opens(const std::string& model, const std::string& folder) {
  std::unique_ptr<Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::open(model);
  } catch (const ModelError& error) {
    promise_named(error.what(), folder);
    return false;
  }
  try {
    if (tokenizer) use(*tokenizer);
  } catch (const ModelError&) {
    return false;  // a pattern that takes too many steps
  }
  return true;
}

}  // namespace

bool accepts_tokenizer_json(const std::string& folder, const std::string& input) {
  const std::vector<std::string> parts = parts_of(input, 2);
  const std::string config = folder + "/tokenizer_config.json";
  std::filesystem::remove(config);
  test::write_file(folder + "/tokenizer.json", parts[0]);
  if (parts.size() > 1) test::write_file(config, parts[1]);
  return opens(folder, folder);
}

std::vector<std::string> tokenizer_json_seeds(const std::string&) {
  std::vector<std::string> seeds;
  for (const char* style :
       {"gpt2", "llama2", "llama3", "metaspace", "mistral", "opt", "qwen2", "smollm"}) {
    const std::string path = test::text_data(style).string();
    seeds.push_back(test::read_file(path + "/tokenizer.json") + std::string(1, '\0') +
                    test::read_file(path + "/tokenizer_config.json"));
  }
  const std::string gpt2 = test::read_file((test::text_data("gpt2") / "tokenizer.json").string());
  const nlohmann::json chat = test::read_json(test::text_data("chat.json"));
  for (const nlohmann::json& known : chat.at("templates")) {
    const nlohmann::json config = {{"chat_template", known.at("text")}};
    seeds.push_back(gpt2 + std::string(1, '\0') + config.dump());
  }
  return seeds;
}

bool accepts_tokenizer_gguf(const std::string& folder, const std::string& input) {
  const std::string path = folder + "/model.gguf";
  test::write_file(path, input);
  return opens(path, folder);
}

std::vector<std::string> tokenizer_gguf_seeds(const std::string& folder) {
  std::vector<std::string> seeds;
  for (const auto& [style, pre] : {std::pair("gpt2", "gpt-2"), std::pair("llama3", "llama-bpe"),
                                   std::pair("qwen2", "qwen2"), std::pair("smollm", "smollm")}) {
    const std::string path = folder + "/seed.gguf";
    test::write_gguf(path, test::converted(style, pre));
    seeds.push_back(test::read_file(path));
  }
  test::write_gguf(folder + "/seed.gguf", test::converted_pieces());
  seeds.push_back(test::read_file(folder + "/seed.gguf"));
  return seeds;
}

}  // namespace headrace::fuzz
