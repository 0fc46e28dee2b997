// The file of --report. Its schema is in report.md.
#pragma once

#include <string>
#include <vector>

#include "runtime/report/stage_report.h"
#include "runtime/run.h"

namespace headrace {

// Text of the whole file. `stages` by rank, not empty.
std::string report_json(const GenerateOptions& options, const std::vector<StageReport>& stages,
                        const RunCounts& counts, RunEnd outcome);

// Throws UsageError if --trace or --report names a file that the run reads or writes otherwise.
void refuse_shared_files(const GenerateOptions& options);

}  // namespace headrace
