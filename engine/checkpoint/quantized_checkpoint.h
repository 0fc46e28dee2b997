// A checkpoint whose large matrices are quantised to 8 or 4 bits as they are read.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "engine/checkpoint/checkpoint.h"

namespace headrace {

// What becomes of the matrices of linear layers, the token embedding and the head.
enum class WeightFormat {
  kNative,  // as the model has them
  kQ8,      // DType::kG8, 8.5 bits per weight
  kQ4,      // DType::kG4, 4.5 bits
};

// "native", "q8", "q4".
const char* weight_format_name(WeightFormat format);
// Throws std::invalid_argument that lists the names.
WeightFormat weight_format_of(std::string_view name);

// `inner` with its F32, F16 and BF16 matrices of linear layers, token embedding and head presented
// as G8 or G4 tensors (engine/group_quant.h); norms, biases and learned positions stay as they are.
// Any byte range can be read, by any thread; a read quantises just the groups it covers, in a
// buffer of a few KiB, so a fingerprint is as cheap as that of `inner`, and it differs from it.
// TensorInfo::offset is the place in the file of what is quantised.
//
// kNative gives `inner` back. Throws std::invalid_argument where a matrix is already low-bit or has
// rows that are not a multiple of 64; the message names the tensor and what to use. Reads throw
// ModelError for a weight that is not finite, besides what `inner` throws.
std::unique_ptr<Checkpoint> quantized(std::unique_ptr<Checkpoint> inner, WeightFormat format);

}  // namespace headrace
