// Text <-> token ids: byte-level BPE as in GPT-2, Llama-3, Qwen2 and SmolLM, and SentencePiece's
// BPE as in Llama-2, TinyLlama and Mistral.
//
// Equal, id for id, to Hugging Face `tokenizers` on the same tokenizer.json; a GGUF file's metadata
// gives the same result through the pre-tokenizer pattern its tokenizer.ggml.pre names, but for
// NFC, which a GGUF file cannot ask for. SentencePiece's is merged by scores there, as
// sentencepiece and llama.cpp do.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace headrace {

class Tokenizer {
 public:
  // From the model a user names: a Hugging Face directory (tokenizer.json, tokenizer_config.json)
  // or a GGUF file. Throws ModelError with file, place and cure; nullptr if the model comes
  // without a tokenizer: "synthetic:...", a directory or GGUF file with nothing of the kind.
  static std::unique_ptr<Tokenizer> open(const std::string& model);
  ~Tokenizer();

  // Token ids of `text`. Added and special tokens that occur in the text are recognised.
  // No BOS is added. `text` must be valid UTF-8 (throws std::invalid_argument). Any thread.
  std::vector<int> encode(std::string_view text) const;

  // What the model's post-processor puts before (and after) a plain prompt, e.g. <|begin_of_text|>.
  const std::vector<int>& prefix() const;
  const std::vector<int>& suffix() const;

  // The bytes a token stands for: not always whole UTF-8 characters. Empty for ids outside the
  // vocabulary (padding rows of the embedding).
  std::string_view bytes(int id) const;
  bool is_special(int id) const;

  // Concatenated bytes, special tokens left out if asked, invalid UTF-8 replaced by U+FFFD. The
  // space that SentencePiece puts before a text is part of its first token.
  std::string decode(std::span<const int> ids, bool skip_special) const;

  // Id of a token by its exact content, e.g. "<|im_end|>".
  std::optional<int> id(std::string_view content) const;
  int vocab_size() const;

  // The chat template's text, empty if the model has none; bos/eos token contents for templates.
  const std::string& chat_template() const;
  std::string bos_token() const;
  std::string eos_token() const;
  // Hexadecimal; two tokenizers with the same one give the same ids and texts.
  const std::string& fingerprint() const;
  // For `inspect`: "byte-level BPE, pattern qwen2, NFC, 151665 tokens, 22 added".
  std::string description() const;

  // Made by the readers (tokenizer_json.cpp, tokenizer_gguf.cpp).
  struct Data;
  explicit Tokenizer(std::unique_ptr<Data> data);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headrace
