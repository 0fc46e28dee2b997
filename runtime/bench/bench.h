// headrace bench as one rank sees it: the model is loaded once, then every batch size runs on it.
#pragma once

#include <atomic>
#include <optional>

#include "runtime/bench/bench_report.h"
#include "runtime/run.h"

namespace headrace {

// Of RunOptions, max_batch follows from the shape.
struct BenchOptions : RunOptions {
  BenchShape shape;
};

// All ranks call it with the same options. The report on rank 0, none elsewhere. When `interrupted`
// is set, the report has the runs that were complete by then. Throws UsageError, ModelError,
// IoError, DoesNotFit (also if the largest batch does not fit), ResourceMissing, PeerLost.
std::optional<BenchReport> run_bench(BenchOptions options, const Wires& wires,
                                     const std::atomic<bool>& interrupted);

}  // namespace headrace
