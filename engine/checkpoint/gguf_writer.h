// The layout of a GGUF file, version 3, little-endian, for a model of the family llama, qwen2 or
// qwen3. Source: ggml `docs/gguf.md`; keys that llama.cpp asks for: `llama-arch.cpp`,
// `llama-vocab.cpp`.
#pragma once

#include <string>

#include "engine/checkpoint/model_writer.h"

namespace headrace {

// Why a model of this configuration cannot become a GGUF file, with the cure; empty if it can.
std::string no_gguf_because(const ModelConfig& config);

// `source`, whose Q and K rows are in half-split order, must outlive the plan. The file has no
// tokenizer (tokenizer.ggml.model "none"): prompts are token ids. Throws ModelError where
// no_gguf_because says so.
PlannedModel plan_gguf(const Checkpoint& source);

}  // namespace headrace
