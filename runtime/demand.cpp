#include "runtime/demand.h"

#include <algorithm>

namespace headrace {
namespace {

constexpr int kDefaultSlots = 256;
constexpr int64_t kStepRows = 512;
constexpr int64_t kLongestStep = 8192;  // rows, where whole prompts go in one step
// Rows on a GPU: what weights pass through the link for should be worth it, and one layer's product
// fill the GPU. Where the link is slow or weights come from disk a plan may want more.
constexpr int64_t kDeviceStepRows = 16384;
constexpr int64_t kDeviceMicroRows = 4096;
// Tokens of a sequence where the input cannot be looked at beforehand.
constexpr int64_t kUsualTokens = 1024;
constexpr int64_t kLongestTokens = 4096;

int slots_of(const RunOptions& options) {
  return options.max_batch > 0 ? options.max_batch : kDefaultSlots;
}

}  // namespace

Stage::Sizes sizes_on_device(const RunOptions& options, const ModelConfig& config) {
  Stage::Sizes sizes;
  sizes.slots = slots_of(options);
  sizes.kv_format = options.kv_format;
  const int64_t chunk =
      options.prefill_chunk > 0 ? options.prefill_chunk : int64_t{config.max_positions};
  sizes.step_rows =
      std::clamp<int64_t>(sizes.slots * std::min<int64_t>(chunk, config.max_positions),
                          std::min<int64_t>(kStepRows, chunk), kDeviceStepRows);
  sizes.micro_batch_rows = std::min(kDeviceMicroRows, sizes.step_rows);
  return sizes;
}

Stage::Sizes sizes_on_host(const RunOptions& options, const ModelConfig& config) {
  Stage::Sizes sizes;
  sizes.slots = slots_of(options);
  sizes.step_rows = kStepRows;
  if (options.prefill_chunk == 0 || options.prefill_chunk > kStepRows) {
    const int64_t wanted = options.prefill_chunk == 0 ? kLongestStep : options.prefill_chunk;
    sizes.step_rows = std::clamp<int64_t>(std::min<int64_t>(wanted, config.max_positions),
                                          kStepRows, kLongestStep);
  } else if (options.max_batch > 0) {
    sizes.step_rows = std::min(kStepRows, options.max_batch * options.prefill_chunk);
  }
  sizes.micro_batch_rows = std::min<int64_t>(256, sizes.step_rows);
  sizes.kv_format = options.kv_format;
  sizes.int8 = options.int8();
  return sizes;
}

Workload workload_of(const RunOptions& options, RequestSizes sizes, const ModelConfig& config,
                     int ranks) {
  const int64_t context = config.max_positions;
  if (sizes.usual == 0) sizes = {kUsualTokens, kLongestTokens, kUsualTokens / 2, 0, true};
  Workload workload;
  workload.sequences = slots_of(options);
  if (sizes.sequences > 0 && sizes.sequences < workload.sequences) {
    workload.sequences = static_cast<int>(sizes.sequences);
  }
  workload.exact = options.max_batch > 0;
  workload.tokens = std::max<int64_t>(2, std::min(sizes.usual, context));
  workload.prompt = std::clamp<int64_t>(sizes.prompt, 1, workload.tokens - 1);
  workload.longest = std::min(sizes.longest, context);
  if (options.prefill_chunk > 0) workload.chunk = options.prefill_chunk;
  workload.groups = ranks;
  workload.sampled = sizes.sampled;
  // Whole prompts go in one step as far as the user wants it.
  if (options.prefill_chunk == 0 || options.prefill_chunk > kStepRows) {
    workload.least_step_rows = kLongestStep;
  }
  return workload;
}

}  // namespace headrace
