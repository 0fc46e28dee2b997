// The tokenizer in a GGUF file's metadata.
// Source: ggml docs/gguf.md, keys "tokenizer.*"; the pre-tokenizers are those of the published
// tokenizer.json that each name of tokenizer.ggml.pre stands for.
#include "engine/checkpoint/gguf.h"
#include "engine/error.h"
#include "runtime/text/tokenizer_data.h"

namespace headrace {
namespace {

constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
constexpr std::string_view kMerges = "tokenizer.ggml.merges";
constexpr std::string_view kModel = "tokenizer.ggml.model";
constexpr std::string_view kPre = "tokenizer.ggml.pre";

enum TokenType : int64_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

std::string place_of(const GgufHeader& file, std::string_view key) {
  return file.path() + ": " + std::string(key);
}

[[noreturn]] void fail(const GgufHeader& file, std::string_view key, const std::string& what) {
  throw ModelError(place_of(file, key) + ": " + what);
}

void set_pretokenizer(const GgufHeader& file, Tokenizer::Data& data) {
  constexpr std::string_view kSupported =
      "headrace supports gpt-2, default, qwen2, smollm, llama-bpe, llama3, llama-v3. Convert the "
      "model again with a recent converter, or use its Hugging Face directory.";
  const std::string* name = file.string(kPre);
  if (name == nullptr) {
    fail(file, kPre, "missing, so the way to cut text is unknown; " + std::string(kSupported));
  }
  const std::string place = place_of(file, kPre);
  Pretokenizer& pre = data.pretokenizer;
  if (*name == "gpt-2" || *name == "default") {
    data.pattern = "gpt2";
    pre.splits.emplace_back(kGpt2Pattern, place);
  } else if (*name == "smollm") {
    data.pattern = "smollm";
    pre.splits.push_back(SplitPattern::digits(/*individual=*/true));
    pre.splits.emplace_back(kGpt2Pattern, place);
  } else if (*name == "qwen2") {
    // No NFC: the published tokenizer.json normalises, but nothing in a GGUF file asks for it, and
    // neither transformers nor llama.cpp does it for one.
    data.pattern = "qwen2";
    pre.splits.emplace_back(kQwen2Pattern, place);
  } else if (*name == "llama-bpe" || *name == "llama3" || *name == "llama-v3") {
    data.pattern = "llama3";
    data.ignore_merges = true;
    pre.splits.emplace_back(kLlama3Pattern, place);
  } else {
    fail(file, kPre,
         "the pre-tokenizer \"" + *name + "\" is not supported; " + std::string(kSupported));
  }
}

// Control and user-defined tokens are what tokenizer.json calls added tokens; unused ones only fill
// the embedding's rows.
void read_vocabulary(const GgufHeader& file, Tokenizer::Data& data) {
  const auto* tokens = file.strings(kTokens);
  const auto* types = file.integers(kTypes);
  const auto* merges = file.strings(kMerges);
  if (tokens == nullptr || tokens->empty())
    fail(file, kTokens, "missing or empty. Fetch the file again.");
  if (merges == nullptr) fail(file, kMerges, "missing. Convert the model again.");
  if (types == nullptr) fail(file, kTypes, "missing. Convert the model again.");
  if (types->size() != tokens->size()) {
    fail(file, kTypes,
         "has " + std::to_string(types->size()) + " entries but there are " +
             std::to_string(tokens->size()) + " tokens. Fetch the file again.");
  }
  const std::string place = place_of(file, kTokens);
  const auto type_of = [&](size_t i) { return (*types)[i]; };
  const auto is_added = [&](size_t i) {
    return type_of(i) == kControl || type_of(i) == kUserDefined;
  };
  for (size_t i = 0; i < tokens->size(); ++i) {
    if (!is_added(i) && type_of(i) != kUnused) {
      data.add_entry((*tokens)[i], static_cast<int64_t>(i), place);
    }
  }
  for (size_t i = 0; i < tokens->size(); ++i) {
    if (!is_added(i)) continue;
    AddedToken token;
    token.content = (*tokens)[i];
    token.special = type_of(i) == kControl;
    data.add_added(std::move(token), static_cast<int64_t>(i), place);
  }
  for (size_t i = 0; i < merges->size(); ++i) {
    data.add_merge((*merges)[i], place_of(file, kMerges) + "[" + std::to_string(i) + "]");
  }
}

// The content of the token that `key` numbers; empty if there is no such key.
std::string named_token(const GgufHeader& file, const Tokenizer::Data& data, std::string_view key) {
  const auto id = file.integer(key);
  if (!id) return "";
  if (*id < 0 || static_cast<uint64_t>(*id) >= data.contents.size() ||
      !data.present[static_cast<size_t>(*id)]) {
    fail(file, key, "token " + std::to_string(*id) + " does not exist. Fetch the file again.");
  }
  return data.contents[static_cast<size_t>(*id)];
}

}  // namespace

std::unique_ptr<Tokenizer::Data> read_tokenizer_gguf(const std::string& path) {
  const GgufHeader file(path);
  auto data = std::make_unique<Tokenizer::Data>();
  const std::string* model = file.string(kModel);
  if (model == nullptr) {
    if (file.strings(kTokens) == nullptr) return nullptr;
    fail(file, kModel, "missing. Convert the model again.");
  }
  if (*model == "none" || *model == "no_vocab") return nullptr;
  if (*model != "gpt2") {
    fail(file, kModel,
         "the tokenizer \"" + *model +
             "\" is not supported; headrace supports gpt2 (byte-level BPE). Choose a "
             "model of the Llama-3, SmolLM2, Qwen2 or GPT-2 kind.");
  }
  set_pretokenizer(file, *data);
  read_vocabulary(file, *data);

  data->bos = named_token(file, *data, "tokenizer.ggml.bos_token_id");
  data->eos = named_token(file, *data, "tokenizer.ggml.eos_token_id");
  const bool add_bos =
      file.boolean("tokenizer.ggml.add_bos_token").value_or(data->pattern == "llama3");
  if (add_bos && !data->bos.empty()) data->prefix = {data->ids.at(data->bos)};
  const bool add_eos = file.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  if (add_eos && !data->eos.empty()) data->suffix = {data->ids.at(data->eos)};
  if (const std::string* text = file.string("tokenizer.chat_template")) data->chat_template = *text;
  return data;
}

}  // namespace headrace
