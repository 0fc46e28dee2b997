// The GPU that a rank computes on, if it does.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "engine/device/device_module.h"
#include "runtime/run.h"

namespace headrace {

inline constexpr int kLeastComputeCapability = 8;  // that engine/device/cuda is built for

struct ChosenDevice {
  std::unique_ptr<DeviceModule> module;
  int number = 0;
  DeviceFacts facts;
  DeviceLinkRates link;
  std::string products;  // see DeviceModule; where they are f16
  std::string why_not;   // why there is none, where that is not what was asked for or built

  explicit operator bool() const { return module != nullptr; }
};

// By options.device; where it names no number, ranks of a host take GPUs in turn; with int8, none
// by itself. Throws ResourceMissing where a GPU is asked for and not to be had, UsageError where
// one is asked for with int8.
ChosenDevice choose_device(const RunOptions& options, int place_on_host);

// Ranks that compute on the same GPU, this one included.
struct GpuSharers {
  uint64_t given = 0;     // the sum of their --device-memory
  int without_given = 0;  // those that have none
};

// All ranks call it. `gpu`: which one this rank has, of all hosts; empty for a CPU.
GpuSharers find_sharers(Communicator& ranks, const std::string& gpu, uint64_t given);

// Bytes that a rank may take of its GPU: what it was given, or else (0) its part of what is free,
// but a margin. Throws DoesNotFit where the sharers were given more than is free.
uint64_t device_budget(const DeviceFacts& facts, uint64_t given, const GpuSharers& sharers);

}  // namespace headrace
