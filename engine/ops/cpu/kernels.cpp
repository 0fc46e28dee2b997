#include "engine/ops/cpu/kernels.h"

#include <cpuid.h>

#include <stdexcept>

#include "engine/error.h"

namespace headrace {
namespace {

// clang 14's __builtin_cpu_supports does not know it.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool cpu_has(Target target) {
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("fma");
  switch (target) {
    case Target::kScalar:
      return fma;
    case Target::kAvx2:
      return fma && __builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2");
    case Target::kAvx512:
      return cpu_has(Target::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  }
  return false;
}

}  // namespace

const char* target_name(Target target) {
  switch (target) {
    case Target::kScalar:
      return "scalar";
    case Target::kAvx2:
      return "avx2";
    case Target::kAvx512:
      return "avx512";
  }
  return "?";
}

std::vector<Target> supported_targets() {
  std::vector<Target> targets;
  for (const Target target : {Target::kAvx512, Target::kAvx2, Target::kScalar}) {
    if (cpu_has(target)) targets.push_back(target);
  }
  return targets;
}

const Kernels& kernels(Target target) {
  if (!cpu_has(target)) {
    std::string have;
    for (const Target t : supported_targets())
      have += std::string(have.empty() ? "" : ", ") + target_name(t);
    if (have.empty()) {
      throw ResourceMissing(
          "this CPU has no fused multiply-add instruction (FMA3), which headrace needs for results "
          "that are the same on every node; use a node with an Intel Haswell, AMD Zen or later "
          "CPU");
    }
    throw ResourceMissing(std::string("this CPU cannot run --target ") + target_name(target) +
                          "; it can run: " + have);
  }
  return target == Target::kScalar ? cpu_detail::scalar_kernels()
                                   : cpu_detail::vector_kernels(target);
}

std::vector<Int8Kernels> int8_tables(Target target) {
  return target == Target::kScalar ? std::vector{cpu_detail::scalar_int8_kernels()}
                                   : cpu_detail::vector_int8_tables(target);
}

const Kernels& kernels(std::string_view name) {
  if (name == "auto") {
    const auto targets = supported_targets();
    return kernels(targets.empty() ? Target::kScalar : targets.front());
  }
  for (const Target target : {Target::kAvx512, Target::kAvx2, Target::kScalar}) {
    if (name == target_name(target)) return kernels(target);
  }
  throw std::invalid_argument("--target " + std::string(name) +
                              " is not known; use auto, avx512, avx2 or scalar");
}

}  // namespace headrace
