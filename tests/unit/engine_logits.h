// All logits of some rows, from an engine that has room for those of a few.
#pragma once

#include <algorithm>
#include <span>

#include "engine/stage_engine.h"

namespace headrace::test {

// out[rows][vocab_size] of rows of hidden states, which are overwritten.
inline void logits_of(StageEngine& engine, float* hidden, int64_t rows, std::span<float> out) {
  const auto width = static_cast<int64_t>(out.size()) / rows;
  engine.head(hidden, {}, rows, [&](int64_t first, int64_t count, const float* logits) {
    std::copy_n(logits, count * width, out.begin() + first * width);
  });
}

}  // namespace headrace::test
