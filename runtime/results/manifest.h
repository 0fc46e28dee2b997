// <output>.manifest.json: what a results file was made with, so that --resume does not mix two
// runs.
//
// Format: one flat JSON object; "headrace_manifest" is its version.
#pragma once

#include <string>

#include "runtime/results/results_file.h"

namespace headrace {

std::string manifest_path(const std::string& output_path);

bool manifest_exists(const std::string& output_path);

// Replaces the file in one step (new file, fsync, rename, fsync of the directory), so that there is
// always a whole one. Throws IoError.
void write_manifest(const std::string& output_path, const Manifest& manifest);

// Throws UsageError if the manifest on disk says something else: each field that differs, with both
// values. IoError if it cannot be read.
void check_manifest(const std::string& output_path, const Manifest& manifest);

}  // namespace headrace
