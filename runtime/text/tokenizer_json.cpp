// The tokenizer of a Hugging Face directory: tokenizer.json and what tokenizer_config.json adds.
#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "engine/checkpoint/read_file.h"
#include "engine/error.h"
#include "runtime/requests/strict_json.h"
#include "runtime/text/json_field.h"
#include "runtime/text/tokenizer_data.h"
#include "runtime/text/tokenizer_json_parts.h"
#include "runtime/text/utf8.h"

namespace headrace {
namespace {

using nlohmann::json;

// Several times the largest known; bounds the memory that a file can ask for.
constexpr uint64_t kMaxBytes = uint64_t{128} << 20;

json parse_file(const std::filesystem::path& path) {
  constexpr const char* kCure = ". Fetch the model's files again.";
  try {
    StrictJson text = parse_strict_json(read_text_file(path.string(), kMaxBytes));
    if (text.repeated_key) {
      throw ModelError(path.string() + ": the key \"" + text.repeated_key->substr(0, 80) +
                       "\" stands twice in one object" + kCure);
    }
    return std::move(text.value);
  } catch (const JsonError& error) {
    throw ModelError(path.string() + ": not valid JSON: " + error.what() + kCure);
  }
}

void read_vocabulary(const JsonField& model, Tokenizer::Data& data) {
  const JsonField vocab = model.at("vocab");
  for (const auto& [content, id] : vocab.object().items()) {
    data.add_entry(content, JsonField(id, vocab.place() + "[\"" + content + "\"]").integer(),
                   vocab.place());
  }
  if (data.contents.empty()) vocab.fail("empty. Fetch the model's files again.");
}

// Both spellings: "a b" and ["a", "b"].
void read_merges(const JsonField& model, Tokenizer::Data& data) {
  const JsonField merges = model.at("merges");
  for (size_t i = 0; i < merges.array_size(); ++i) {
    const JsonField merge = merges.at(i);
    if (merge.value().is_array()) {
      if (merge.array_size() != 2)
        merge.fail("must have two parts. Fetch the model's files again.");
      data.add_merge(merge.at(0).string(), merge.at(1).string(), merge.place());
    } else {
      data.add_merge(merge.string(), merge.place());
    }
  }
}

void read_model(const JsonField& root, Tokenizer::Data& data) {
  const JsonField model = root.at("model");
  if (const auto type = model.find("type"); type && type->string() != "BPE") {
    type->fail("\"" + type->string() +
               "\" is not supported; headrace supports BPE. Choose a model of the Llama, Mistral, "
               "SmolLM2, Qwen or OPT kind.");
  }
  const auto must_be_off = [&](const char* key, bool on) {
    if (!on) return;
    model.at(key).fail(
        "is set, which is not supported; headrace supports BPE with no dropout, no "
        "continuing_subword_prefix and no end_of_word_suffix. Choose a model with such a "
        "tokenizer.");
  };
  data.sentencepiece = model.boolean_or("byte_fallback", false);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto field = model.find(key);
    must_be_off(key, field && !field->string().empty());
  }
  if (const auto dropout = model.find("dropout")) must_be_off("dropout", dropout->value() != 0);

  read_vocabulary(model, data);
  read_merges(model, data);
  data.ignore_merges = model.boolean_or("ignore_merges", false);
  data.fuse_unknown = model.boolean_or("fuse_unk", false);
  if (const auto unknown = model.find("unk_token")) {
    const auto found = data.ids.find(unknown->string());
    if (found != data.ids.end()) data.unknown = found->second;
  }
}

void read_added_tokens(const JsonField& root, Tokenizer::Data& data) {
  const auto list = root.find("added_tokens");
  if (!list) return;
  for (size_t i = 0; i < list->array_size(); ++i) {
    const JsonField item = list->at(i);
    AddedToken token;
    token.content = item.at("content").string();
    token.special = item.boolean_or("special", false);
    token.single_word = item.boolean_or("single_word", false);
    token.lstrip = item.boolean_or("lstrip", false);
    token.rstrip = item.boolean_or("rstrip", false);
    token.normalized = item.boolean_or("normalized", !token.special);
    data.add_added(std::move(token), item.at("id").integer(), item.place());
  }
}

// "<s>", or the object that describes an added token.
std::string token_content(const JsonField& config, const char* key) {
  const auto field = config.find(key);
  if (!field) return "";
  return field->value().is_object() ? field->at("content").string() : field->string();
}

// A template, or a list of named ones.
std::string template_text(const JsonField& config) {
  const auto field = config.find("chat_template");
  if (!field) return "";
  if (!field->value().is_array()) return field->string();
  for (size_t i = 0; i < field->array_size(); ++i) {
    if (field->at(i).at("name").string() == "default") return field->at(i).at("template").string();
  }
  return "";
}

void read_config(const JsonField& config, Tokenizer::Data& data) {
  data.bos = token_content(config, "bos_token");
  data.eos = token_content(config, "eos_token");
  data.chat_template = template_text(config);
  // As in transformers: if the configuration says anything about bos and eos, that replaces the
  // template of tokenizer.json.
  const auto add_bos = config.find("add_bos_token");
  const auto add_eos = config.find("add_eos_token");
  if (!add_bos && !add_eos) return;
  data.prefix.clear();
  data.suffix.clear();
  if (add_bos && add_bos->boolean() && !data.bos.empty()) {
    data.prefix = {data.require_id(data.bos, config.place() + ".bos_token")};
  }
  if (add_eos && add_eos->boolean() && !data.eos.empty()) {
    data.suffix = {data.require_id(data.eos, config.place() + ".eos_token")};
  }
}

}  // namespace

std::unique_ptr<Tokenizer::Data> read_tokenizer_directory(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "tokenizer.json";
  if (!is_there(path.string())) {
    const auto has = [&](const char* name) { return is_there((directory / name).string()); };
    constexpr const char* kTraces[] = {"tokenizer_config.json", "tokenizer.model", "vocab.json",
                                       "merges.txt"};
    if (std::none_of(std::begin(kTraces), std::end(kTraces), has)) return nullptr;
    throw ModelError(path.string() +
                     ": missing. If the model has vocab.json and merges.txt only, make it with "
                     "transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).");
  }
  auto data = std::make_unique<Tokenizer::Data>();
  const json text = parse_file(path);
  const JsonField root(text, path.string());
  read_model(root, *data);
  read_added_tokens(root, *data);
  read_normalizer(root, *data);
  read_pretokenizer(root, *data);
  read_post_processor(root, *data);
  check_decoder(root, *data);
  data->check_normalized(path.string());

  if (const auto config = directory / "tokenizer_config.json"; is_there(config.string())) {
    const json config_text = parse_file(config);
    read_config(JsonField(config_text, config.string()), *data);
  }
  if (const auto file = directory / "chat_template.jinja"; is_there(file.string())) {
    data->chat_template = read_text_file(file.string(), kMaxBytes);
    if (!is_valid_utf8(data->chat_template)) {
      throw ModelError(file.string() + ": not valid UTF-8. Fetch the model's files again.");
    }
  }
  return data;
}

}  // namespace headrace
