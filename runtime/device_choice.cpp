#include "runtime/device_choice.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "engine/error.h"
#include "engine/memory/budget.h"
#include "runtime/error.h"
#include "runtime/json_bytes.h"

namespace headrace {
namespace {

constexpr uint64_t kLeastMargin = 512 << 20;

}  // namespace

ChosenDevice choose_device(const RunOptions& options, int place_on_host) {
  ChosenDevice chosen;
  if (options.device == "cpu") return chosen;
  if (options.int8() && options.device != "auto") {
    throw UsageError("--math int8 is computed on CPUs only, not with --device " + options.device +
                     "; use --device cpu, or --math f16 or f32");
  }
  std::error_code ignored;
  if (options.device == "auto" && !std::filesystem::exists(options.cuda_module, ignored)) {
    return chosen;  // built without CUDA
  }
  if (options.int8()) {
    chosen.why_not = "--math int8 is computed on CPUs only";
    return chosen;
  }
  try {
    auto module = open_device_module(options.cuda_module);
    const int count = module->count();
    const bool is_numbered = options.device.starts_with("cuda:");
    chosen.number = is_numbered ? std::atoi(options.device.c_str() + 5) : place_on_host % count;
    if (chosen.number >= count) {
      throw ResourceMissing("--device " + options.device + ": there " +
                            (count == 1 ? "is 1 GPU" : "are " + std::to_string(count) + " GPUs") +
                            ", numbered from 0");
    }
    const DeviceFacts facts = module->facts(chosen.number);
    if (facts.major < kLeastComputeCapability) {
      throw ResourceMissing("GPU " + std::to_string(chosen.number) + " (" + facts.name +
                            ") has compute capability " + std::to_string(facts.major) + "." +
                            std::to_string(facts.minor) + ", headrace needs " +
                            std::to_string(kLeastComputeCapability) + ".0 or newer");
    }
    chosen.facts = facts;
    chosen.link = module->measure_link(chosen.number);
    if (options.math != "f32") chosen.products = module->products();
    chosen.module = std::move(module);
  } catch (const ResourceMissing& e) {
    if (options.device != "auto") {
      throw ResourceMissing(std::string(e.what()) + "; use --device cpu, or see headrace doctor");
    }
    chosen.why_not = e.what();
  }
  return chosen;
}

GpuSharers find_sharers(Communicator& ranks, const std::string& gpu, uint64_t given) {
  const auto all = share_with_all(ranks, {{"gpu", gpu}, {"given", given}});
  GpuSharers sharers;
  for (const nlohmann::json& rank : all) {
    if (gpu.empty() || rank.at("gpu") != all[static_cast<size_t>(ranks.rank())].at("gpu")) continue;
    sharers.given += rank.at("given").get<uint64_t>();
    sharers.without_given += rank.at("given") == 0;
  }
  return sharers;
}

uint64_t device_budget(const DeviceFacts& facts, uint64_t given, const GpuSharers& sharers) {
  if (given > 0 && sharers.given > facts.memory_free) {
    throw DoesNotFit("--device-memory is more than the GPU (" + facts.name +
                     ") has free\n  given        " + format_bytes(given) +
                     (sharers.given > given
                          ? ", with the other ranks that share it " + format_bytes(sharers.given)
                          : "") +
                     "\n  free         " + format_bytes(facts.memory_free) + " of " +
                     format_bytes(facts.memory_total) +
                     "\ngive less --device-memory, or end what else runs on that GPU");
  }
  if (given > 0) return given;
  const uint64_t margin = std::max(kLeastMargin, facts.memory_total / 64);
  if (facts.memory_free <= margin + sharers.given) return 0;
  return (facts.memory_free - margin - sharers.given) /
         static_cast<uint64_t>(sharers.without_given);
}

}  // namespace headrace
