#include "runtime/open_model.h"

#include <stdexcept>

#include "runtime/error.h"

namespace headrace {

std::unique_ptr<Checkpoint> open_model(const std::string& model, WeightFormat weights) {
  auto checkpoint = Checkpoint::open(model);
  try {
    return quantized(std::move(checkpoint), weights);
  } catch (const std::invalid_argument& e) {
    throw UsageError(e.what());
  }
}

}  // namespace headrace
