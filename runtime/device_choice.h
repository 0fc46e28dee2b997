// The GPU that a rank computes on, if it does.
#pragma once

#include <memory>
#include <string>

#include "engine/device/device_module.h"
#include "runtime/run.h"

namespace headrace {

struct ChosenDevice {
  std::unique_ptr<DeviceModule> module;
  int number = 0;
  std::string why_not;  // why there is none, where that is not what was asked for or built

  explicit operator bool() const { return module != nullptr; }
};

// By options.device; where it names no number, ranks of a host take GPUs in turn; with int8, none
// by itself. Throws ResourceMissing where a GPU is asked for and not to be had, UsageError where
// one is asked for with int8.
ChosenDevice choose_device(const RunOptions& options, int place_on_host);

// Bytes that a rank may take of a GPU that so many ranks share: what is free, but a margin.
uint64_t default_device_memory(const DeviceFacts& facts, int ranks);

}  // namespace headrace
