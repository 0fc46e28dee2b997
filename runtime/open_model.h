// Opens the model of a run.
#pragma once

#include <memory>
#include <string>

#include "engine/checkpoint/quantized_checkpoint.h"

namespace headrace {

// What `--model` names, its weights in the format `--weights` asks for. Throws UsageError where the
// model does not allow the format, ModelError, IoError.
std::unique_ptr<Checkpoint> open_model(const std::string& model, WeightFormat weights);

}  // namespace headrace
