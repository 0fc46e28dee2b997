#include "runtime/text/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/hasher.h"
#include "engine/error.h"
#include "runtime/text/byte_level.h"
#include "runtime/text/sentencepiece.h"
#include "runtime/text/tokenizer_data.h"
#include "runtime/text/utf8.h"

namespace headrace {
namespace {

std::vector<AddedToken> added_where(const Tokenizer::Data& data, bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken token : data.added) {
    if (token.normalized != normalized) continue;
    if (normalized) token.content = data.pretokenizer.normalize(token.content);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

Bpe::Tables bpe_tables(Tokenizer::Data& data) {
  Bpe::Tables tables;
  tables.merges = std::move(data.merges);
  tables.unknown = data.unknown;
  tables.fuse_unknown = data.fuse_unknown;
  tables.by_character = data.sentencepiece;
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = data.ids.find(
        data.sentencepiece ? byte_piece(static_cast<uint8_t>(byte))
                           : byte_level_encode(std::string(1, static_cast<char>(byte))));
    const bool is_known = found != data.ids.end() && data.in_model(found->second);
    tables.byte_ids[byte] = is_known ? found->second : -1;
  }
  for (const auto& [content, id] : data.ids) {
    if (!data.sentencepiece || content.empty() || !data.in_model(id)) continue;
    size_t end = 0;
    const char32_t character = next_character(content, end);
    if (end == content.size()) tables.characters.emplace(character, id);
  }
  if (data.ignore_merges) {
    for (const auto& [content, id] : data.ids) {
      if (!data.in_model(id)) continue;
      auto bytes = data.sentencepiece ? content : byte_level_decode(content);
      if (bytes) tables.whole.emplace(std::move(*bytes), id);
    }
  }
  return tables;
}

// Of all that ids and texts depend on.
std::string fingerprint_of(const Tokenizer::Data& data) {
  Hasher hash;
  for (const std::string& content : data.contents) hash.text(content);
  uint64_t merges = 0;  // in no order
  for (const auto& [pair, merge] : data.merges) {
    const uint64_t entry[] = {pair, static_cast<uint64_t>(merge.rank),
                              static_cast<uint64_t>(merge.result)};
    merges += XXH3_64bits(entry, sizeof entry);
  }
  const auto integers = [&](std::initializer_list<int64_t> values) {
    for (const int64_t value : values) hash.integer(static_cast<uint64_t>(value));
  };
  hash.integer(merges);
  integers({data.ignore_merges, data.fuse_unknown, data.unknown});
  for (const AddedToken& token : data.added) {
    hash.text(token.content);
    integers(
        {token.id, token.special, token.single_word, token.lstrip, token.rstrip, token.normalized});
  }
  for (const std::vector<int>* around : {&data.prefix, &data.suffix}) {
    integers({std::ssize(*around)});
    for (const int id : *around) integers({id});
  }
  hash.text(data.pattern);
  const Pretokenizer& pre = data.pretokenizer;
  integers({pre.has_nfc(), pre.add_prefix_space});
  // Where a pattern of the file's own cuts.
  const std::string sample = "It's  12345 x_1=\"\xc3\xa9\";\n\n\tI'LL \xe2\x82\xac.";
  const auto cut = [&](bool is_first) {
    pre.run(sample, is_first, [&](std::string_view piece) { hash.text(piece); });
  };
  cut(true);
  if (data.sentencepiece) cut(false);
  for (const NormalizerStep& step : pre.normalizer) {
    // By itself it is above.
    if (step.kind == NormalizerStep::Kind::kNfc && pre.normalizer.size() == 1) continue;
    integers({static_cast<int64_t>(step.kind)});
    hash.text(step.from);
    hash.text(step.to);
  }
  return hash.digest();
}

// Whether a text's words can be merged one by one: nothing goes over the space between them. So it
// is where SentencePiece was trained as usual.
bool has_words(const Tokenizer::Data& data) {
  if (!data.sentencepiece || data.ignore_merges || !data.ids.contains(std::string(kSpaceMark))) {
    return false;
  }
  const auto content = [&](uint64_t id) -> std::string_view { return data.contents[id]; };
  return std::none_of(data.merges.begin(), data.merges.end(), [&](const auto& entry) {
    const std::string_view left = content(entry.first >> 32),
                           right = content(entry.first & UINT32_MAX);
    return right.starts_with(kSpaceMark) && !left.ends_with(kSpaceMark);
  });
}

// Added tokens are plain text; an entry outside the byte-level alphabet of a byte-level tokenizer
// can only be meant as plain text too.
std::vector<std::string> token_bytes(const Tokenizer::Data& data) {
  std::vector<std::string> bytes;
  bytes.reserve(data.contents.size());
  for (const std::string& content : data.contents) {
    bytes.push_back(data.sentencepiece ? piece_text(content)
                                       : byte_level_decode(content).value_or(content));
  }
  for (const AddedToken& token : data.added) bytes[static_cast<size_t>(token.id)] = token.content;
  return bytes;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(std::unique_ptr<Data> source)
      : data(std::move(source)),
        fingerprint(fingerprint_of(*data)),
        raw_added(added_where(*data, false)),
        normalized_added(added_where(*data, true)),
        bytes(token_bytes(*data)),
        special(data->contents.size(), false),
        words(has_words(*data)),
        bpe(bpe_tables(*data)) {
    for (const AddedToken& token : data->added) {
      if (token.special) special[static_cast<size_t>(token.id)] = true;
    }
    tokens = std::count(data->present.begin(), data->present.end(), true);
    std::vector<std::string>().swap(data->contents);  // `bytes` and `ids` have them
  }

  bool known(int id) const { return id >= 0 && static_cast<size_t>(id) < bytes.size(); }

  std::unique_ptr<Data> data;
  const std::string fingerprint;
  AddedTokenFinder raw_added;         // looked for in the text as it came
  AddedTokenFinder normalized_added;  // looked for in what is left, normalised
  std::vector<std::string> bytes;     // by id
  std::vector<bool> special;
  const bool words;
  Bpe bpe;
  int64_t tokens = 0;
};

std::unique_ptr<Tokenizer> Tokenizer::open(const std::string& model) {
  if (model.starts_with("synthetic:")) return nullptr;
  std::error_code ignored;
  if (std::filesystem::is_directory(model, ignored)) {
    auto data = read_tokenizer_directory(model);
    return data ? std::make_unique<Tokenizer>(std::move(data)) : nullptr;
  }
  if (!std::filesystem::exists(model, ignored)) {
    throw ModelError(model +
                     ": no such file or directory. Name a Hugging Face directory or a GGUF file.");
  }
  if (!is_gguf(model)) {
    throw ModelError(
        model +
        ": no tokenizer here: neither a directory nor a file that starts with \"GGUF\". "
        "Name a Hugging Face directory or a GGUF file.");
  }
  auto data = read_tokenizer_gguf(model);
  return data ? std::make_unique<Tokenizer>(std::move(data)) : nullptr;
}

Tokenizer::Tokenizer(std::unique_ptr<Data> data) : impl_(std::make_unique<Impl>(std::move(data))) {}
Tokenizer::~Tokenizer() = default;

std::vector<int> Tokenizer::encode(std::string_view text) const {
  if (!is_valid_utf8(text)) throw std::invalid_argument("Tokenizer::encode: not valid UTF-8");
  std::vector<int> ids;
  const auto add_id = [&](int id) { ids.push_back(id); };
  const Pretokenizer& pre = impl_->data->pretokenizer;
  impl_->raw_added.scan(text, add_id, [&](std::string_view part) {
    const std::string normalized = pre.normalize(part);
    impl_->normalized_added.scan(normalized, add_id, [&](std::string_view rest) {
      const bool is_first = part.data() == text.data() && rest.data() == normalized.data();
      pre.run(rest, is_first, [&](std::string_view piece) {
        const auto merge = [&](std::string_view word) { impl_->bpe.encode(word, ids); };
        impl_->words ? each_word(piece, merge) : merge(piece);
      });
    });
  });
  return ids;
}

const std::vector<int>& Tokenizer::prefix() const { return impl_->data->prefix; }
const std::vector<int>& Tokenizer::suffix() const { return impl_->data->suffix; }

std::string_view Tokenizer::bytes(int id) const {
  return impl_->known(id) ? std::string_view(impl_->bytes[static_cast<size_t>(id)])
                          : std::string_view();
}

bool Tokenizer::is_special(int id) const {
  return impl_->known(id) && impl_->special[static_cast<size_t>(id)];
}

std::string Tokenizer::decode(std::span<const int> ids, bool skip_special) const {
  std::string text;
  for (const int id : ids) {
    if (!skip_special || !is_special(id)) text += bytes(id);
  }
  return replace_invalid_utf8(text);
}

std::optional<int> Tokenizer::id(std::string_view content) const {
  const auto found = impl_->data->ids.find(std::string(content));
  if (found == impl_->data->ids.end()) return std::nullopt;
  return found->second;
}

int Tokenizer::vocab_size() const { return static_cast<int>(impl_->bytes.size()); }

const std::string& Tokenizer::chat_template() const { return impl_->data->chat_template; }
std::string Tokenizer::bos_token() const { return impl_->data->bos; }
std::string Tokenizer::eos_token() const { return impl_->data->eos; }

const std::string& Tokenizer::fingerprint() const { return impl_->fingerprint; }

std::string Tokenizer::description() const {
  const Data& data = *impl_->data;
  return (data.sentencepiece ? "SentencePiece BPE" : "byte-level BPE, pattern " + data.pattern) +
         (data.pretokenizer.has_nfc() ? ", NFC, " : ", ") + std::to_string(impl_->tokens) +
         " tokens, " + std::to_string(impl_->data->added.size()) + " added";
}

}  // namespace headrace
