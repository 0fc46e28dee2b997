#include "runtime/plan/stage_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "comm/activation_link.h"
#include "engine/error.h"
#include "runtime/error.h"

namespace headrace {
namespace {

std::vector<StageRange> ranges_of(const std::vector<int>& layers) {
  std::vector<StageRange> ranges;
  int first = 0;
  for (size_t s = 0; s < layers.size(); ++s) {
    ranges.push_back({first, first + layers[s], s == 0, s + 1 == layers.size()});
    first += layers[s];
  }
  return ranges;
}

std::string list(const std::vector<int>& values) {
  std::string text;
  for (const int v : values) text += (text.empty() ? "" : ",") + std::to_string(v);
  return text;
}

// Layers per stage that minimise the largest stage cost. best[s][l]: the least possible largest
// cost of stages 0..s when they hold the first l layers.
std::vector<int> balance(const std::vector<double>& layer_costs, double first_cost,
                         double last_cost, int stages) {
  const int layers = static_cast<int>(layer_costs.size());
  std::vector<double> prefix(layers + 1, 0.0);
  std::partial_sum(layer_costs.begin(), layer_costs.end(), prefix.begin() + 1);
  const auto cost = [&](int stage, int from, int to) {
    return prefix[to] - prefix[from] + (stage == 0 ? first_cost : 0.0) +
           (stage == stages - 1 ? last_cost : 0.0);
  };
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector best(stages, std::vector<double>(layers + 1, kNever));
  std::vector from(stages, std::vector<int>(layers + 1, 0));
  for (int l = 1; l <= layers; ++l) best[0][l] = cost(0, 0, l);
  for (int s = 1; s < stages; ++s) {
    for (int l = s + 1; l <= layers; ++l) {
      for (int begin = s; begin < l; ++begin) {
        const double worst = std::max(best[s - 1][begin], cost(s, begin, l));
        if (worst < best[s][l]) {
          best[s][l] = worst;
          from[s][l] = begin;
        }
      }
    }
  }
  std::vector<int> result(stages);
  for (int s = stages - 1, l = layers; s >= 0; --s) {
    result[s] = l - from[s][l];
    l = from[s][l];
  }
  return result;
}

// What a step of about 16 rows takes of a unit, in bytes read from memory: a core reads some 10
// GB/s and does some 65 billion multiply-adds per second.
double step_cost(const WeightUnit& unit) {
  constexpr double kBytesPerWeight = 16 * 10e9 / 65e9;
  double cost = static_cast<double>(unit.image_bytes);
  for (const PlacedMatrix& matrix : unit.matrices) {
    cost += kBytesPerWeight * static_cast<double>(matrix.tensor->rows * matrix.tensor->cols);
  }
  return cost;
}

// Of the rows of a step, those that the head is wanted for: tokens of a prompt but the last one are
// not. A run has about one of them for every two that are generated.
constexpr double kRowsOfHead = 2.0 / 3;

}  // namespace

std::vector<StageRange> cut_stages(const Checkpoint& checkpoint, int stages,
                                   const std::vector<int>& split) {
  const int layers = checkpoint.config().n_layers;
  if (stages > layers) {
    throw UsageError("the model has " + std::to_string(layers) + " layers, too few for " +
                     std::to_string(stages) + " stages; start at most " + std::to_string(layers) +
                     " ranks");
  }
  if (!split.empty()) {
    const bool positive = std::all_of(split.begin(), split.end(), [](int n) { return n > 0; });
    if (static_cast<int>(split.size()) != stages || !positive ||
        std::accumulate(split.begin(), split.end(), 0) != layers) {
      throw UsageError("--split " + list(split) + " must name " + std::to_string(stages) +
                       " positive numbers (one per rank) that add up to the model's " +
                       std::to_string(layers) + " layers");
    }
    return ranges_of(split);
  }
  std::vector<double> costs;
  for (int l = 0; l < layers; ++l) {
    costs.push_back(step_cost(weight_layout(checkpoint, {l, l + 1, false, false}).units.front()));
  }
  const WeightLayout last = weight_layout(checkpoint, {layers, layers, false, true});
  const double head = kRowsOfHead * step_cost(last.units[last.head_unit()]);
  return ranges_of(balance(costs, /*first_cost=*/0, head, stages));
}

int link_buffers(const StageRange& range) {
  return range.is_first && range.is_last ? 1 : kLinkBuffers;
}

size_t link_buffer_bytes(const ModelConfig& config, int64_t rows) {
  return static_cast<size_t>(rows * config.d_model) * sizeof(float);
}

}  // namespace headrace
