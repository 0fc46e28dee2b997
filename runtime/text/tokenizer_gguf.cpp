// The tokenizer in a GGUF file's metadata.
// Source: ggml docs/gguf.md, keys "tokenizer.*"; the pre-tokenizers are those of the published
// tokenizer.json that each name of tokenizer.ggml.pre stands for.
#include "engine/checkpoint/gguf.h"
#include "engine/error.h"
#include "runtime/text/sentencepiece.h"
#include "runtime/text/tokenizer_data.h"

namespace headrace {
namespace {

constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
constexpr std::string_view kMerges = "tokenizer.ggml.merges";
constexpr std::string_view kModel = "tokenizer.ggml.model";
constexpr std::string_view kPre = "tokenizer.ggml.pre";
constexpr std::string_view kScores = "tokenizer.ggml.scores";

enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };

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

void check_count(const GgufHeader& file, std::string_view key, size_t count, size_t tokens) {
  if (count == tokens) return;
  fail(file, key,
       "has " + std::to_string(count) + " entries but there are " + std::to_string(tokens) +
           " tokens. Fetch the file again.");
}

// Control, unknown and user-defined tokens are what tokenizer.json calls added tokens; unused ones
// only fill the embedding's rows.
void read_vocabulary(const GgufHeader& file, Tokenizer::Data& data) {
  const auto* tokens = file.strings(kTokens);
  const auto* types = file.integers(kTypes);
  if (tokens == nullptr || tokens->empty())
    fail(file, kTokens, "missing or empty. Fetch the file again.");
  if (types == nullptr) fail(file, kTypes, "missing. Convert the model again.");
  check_count(file, kTypes, types->size(), tokens->size());
  const std::string place = place_of(file, kTokens);
  const auto type_of = [&](size_t i) { return (*types)[i]; };
  const auto is_added = [&](size_t i) {
    return type_of(i) == kControl || type_of(i) == kUserDefined ||
           (data.sentencepiece && type_of(i) == kUnknown);
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
    token.special = type_of(i) != kUserDefined;
    data.add_added(std::move(token), static_cast<int64_t>(i), place);
  }
}

void read_merges(const GgufHeader& file, Tokenizer::Data& data) {
  const auto* merges = file.strings(kMerges);
  if (merges == nullptr) fail(file, kMerges, "missing. Convert the model again.");
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

// A space goes before each text between special tokens, as llama.cpp has it.
void read_sentencepiece(const GgufHeader& file, Tokenizer::Data& data) {
  data.sentencepiece = true;
  read_vocabulary(file, data);
  const auto* scores = file.reals(kScores);
  if (scores == nullptr) fail(file, kScores, "missing. Convert the model again.");
  const std::vector<int64_t>& types = *file.integers(kTypes);
  check_count(file, kScores, scores->size(), types.size());
  std::vector<bool> whole;
  for (const int64_t type : types) whole.push_back(type != kNormal && type != kUserDefined);
  data.add_merges_by_score(*scores, whole, file.path());
  using Kind = NormalizerStep::Kind;
  std::vector<NormalizerStep>& steps = data.pretokenizer.normalizer;
  const std::string mark(kSpaceMark);
  if (file.boolean("tokenizer.ggml.add_space_prefix").value_or(true)) {
    steps.push_back({Kind::kPrepend, "", mark});
  }
  steps.push_back({Kind::kReplace, " ", mark});
  if (const auto unknown = file.integer("tokenizer.ggml.unknown_token_id")) {
    named_token(file, data, "tokenizer.ggml.unknown_token_id");
    data.unknown = static_cast<int>(*unknown);
  }
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
  if (*model == "llama") {
    read_sentencepiece(file, *data);
  } else if (*model == "gpt2") {
    set_pretokenizer(file, *data);
    read_vocabulary(file, *data);
    read_merges(file, *data);
  } else {
    fail(file, kModel,
         "the tokenizer \"" + *model +
             "\" is not supported; headrace supports gpt2 (byte-level BPE) and llama "
             "(SentencePiece's BPE). Choose a model of the Llama, Mistral, SmolLM2, Qwen or GPT-2 "
             "kind.");
  }

  data->bos = named_token(file, *data, "tokenizer.ggml.bos_token_id");
  data->eos = named_token(file, *data, "tokenizer.ggml.eos_token_id");
  const bool add_bos = file.boolean("tokenizer.ggml.add_bos_token")
                           .value_or(data->sentencepiece || data->pattern == "llama3");
  if (add_bos && !data->bos.empty()) data->prefix = {data->ids.at(data->bos)};
  const bool add_eos = file.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  if (add_eos && !data->eos.empty()) data->suffix = {data->ids.at(data->eos)};
  if (const std::string* text = file.string("tokenizer.chat_template")) data->chat_template = *text;
  return data;
}

}  // namespace headrace
