// Random weights of a named shape, made on read: for scaling work on models one does not have.
//
// The value of an element is a pure function of the shape's name, the tensor's name, the format,
// the seed and the element's index: every rank that reads a byte range sees the same bytes, on
// every machine. Norm weights lie around 1; matrices have a standard deviation of about
// 1/sqrt(columns), so that activations and logits keep a sensible size.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "engine/checkpoint/checkpoint.h"

namespace headrace {

inline constexpr std::string_view kSyntheticPrefix = "synthetic:";

// `model` is "synthetic:<shape>[:<format>[:<seed>]]": a shape of engine/model/shapes.h; f32, f16,
// bf16 (if not given), q8 (or q8_0), q4 (or q4_0); a whole number, 0 if not given. The format is
// that of the matrices (Q8_0 and Q4_0 only where a row is a multiple of 32 elements, else F16);
// vectors are F32. Throws ModelError that lists what is possible.
std::unique_ptr<Checkpoint> open_synthetic(const std::string& model);

}  // namespace headrace
