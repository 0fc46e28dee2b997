// Reader of safetensors headers.
// Source: safetensors format description (README of the safetensors project). Layout: length of the
// header u64 little-endian, header as a JSON object {name: {dtype, shape, data_offsets [begin, end)
// relative to the end of the header}, "__metadata__": {...}}, tensor data.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/read_file.h"

namespace headrace {

struct SafetensorsHeader {
  // F32, F16 and BF16 tensors by ascending offset; offsets are absolute, `file` is 0.
  std::vector<TensorInfo> tensors;
  // Tensors of other formats: name, and the message to show if one is needed.
  std::map<std::string, std::string> unusable;
};

// Checks that every tensor lies inside the file, has the size that its shape and dtype imply, and
// shares no byte with another. Throws ModelError (file, byte or tensor, cure) and IoError.
SafetensorsHeader read_safetensors_header(const ReadFile& file);

}  // namespace headrace
