// The options of a run over the pipeline that generate and bench share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "runtime/run.h"

namespace headrace {

inline constexpr double kDefaultPeerTimeout = 60.0;  // seconds

// Values as the command line writes them, until finish_run_options.
struct RunArguments {
  std::string split, host_memory, kv_memory, disk_budget, prefill_chunk = "128";
  std::string device_memory, device_weights, device_kv, host_attention = "auto";
  std::string schedule = "overlapped";
  double peer_timeout = kDefaultPeerTimeout;
};

// Adds --model, which must be given.
void add_model_option(CLI::App& sub, RunOptions& run);
// Adds the options that say how the model runs: threads, split, memory, formats, target, deadline.
// `run` and `arguments` must outlive `sub`.
void add_run_options(CLI::App& sub, RunOptions& run, RunArguments& arguments);
// Call it after parsing. Throws UsageError that names the option.
void finish_run_options(RunOptions& run, const RunArguments& arguments);

}  // namespace headrace
