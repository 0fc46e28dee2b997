// The parts of tokenizer.json around the model: normalizer, pre_tokenizer, post_processor, decoder.
// Format: what Hugging Face `tokenizers` writes (its crate's serialisation).
#pragma once

#include "runtime/text/json_field.h"
#include "runtime/text/tokenizer_data.h"

namespace headrace {

// Each takes the whole tokenizer.json, fills its part of `data`, and throws a ModelError that names
// the field and what is supported. They need the model, which says whether it is SentencePiece's.
void read_normalizer(const JsonField& root, Tokenizer::Data& data);
void read_pretokenizer(const JsonField& root, Tokenizer::Data& data);
void read_post_processor(const JsonField& root, Tokenizer::Data& data);
void check_decoder(const JsonField& root, const Tokenizer::Data& data);

}  // namespace headrace
