// A model in one GGUF file: the architectures llama, qwen2 and qwen3.
// Source of keys and tensor names: ggml `docs/gguf.md` and gguf-py `constants.py`.
#pragma once

#include <memory>
#include <string>

#include "engine/checkpoint/checkpoint.h"

namespace headrace {

// Throws ModelError (file, key or byte, cure) and IoError.
std::unique_ptr<Checkpoint> open_gguf(const std::string& path);

}  // namespace headrace
