// headrace clean: gives back the disk that offload files take.

#include <cstdio>
#include <filesystem>
#include <memory>
#include <vector>

#include "engine/error.h"
#include "engine/memory/budget.h"
#include "engine/memory/offload_directory.h"
#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/subcommands.h"
#include "runtime/error.h"

namespace headrace {
namespace {

struct CleanArguments {
  std::string disk;
  bool dry_run = false;
};

std::string count_of(int files) {
  return std::to_string(files) + (files == 1 ? " file" : " files");
}

void print_entry(const char* what, const OffloadEntry& entry) {
  std::printf("%-12s %10s  %s (%s)\n", what, format_bytes(entry.bytes).c_str(), entry.path.c_str(),
              entry.description.c_str());
}

// Goes on after a file that cannot be removed, and throws at the end.
void clean(const std::string& directory, bool dry_run) {
  int removed = 0, in_use = 0;
  uint64_t bytes = 0;
  std::string failures;
  for (const OffloadEntry& entry : list_offload_directory(directory)) {
    bool gone = dry_run && !entry.in_use;
    try {
      gone = gone || (!entry.in_use && remove_offload_entry(entry));
    } catch (const IoError& error) {
      failures += (failures.empty() ? "" : "\n") + std::string(error.what());
      continue;
    }
    if (gone) {
      print_entry(dry_run ? "would remove" : "removed", entry);
      ++removed;
      bytes += entry.bytes;
    } else if (std::filesystem::exists(entry.path)) {
      print_entry("in use", entry);
      ++in_use;
    }
  }
  const std::string summary = removed == 0 ? "nothing to remove in " + directory
                                           : count_of(removed) + ", " + format_bytes(bytes) +
                                                 (dry_run ? " would be freed" : " freed");
  std::printf(
      "%s%s\n", summary.c_str(),
      in_use == 0 ? "" : ("; " + count_of(in_use) + " in use by running processes").c_str());
  if (!failures.empty()) throw IoError(failures);
}

}  // namespace

void add_clean(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<CleanArguments>();
  CLI::App* sub = app.add_subcommand("clean", "Remove offload files that no running process uses");
  add_path_option(*sub, "--disk", a->disk,
                  "Directory of the offload files; default $XDG_CACHE_HOME/headrace/offload or "
                  "~/.cache/headrace/offload");
  sub->add_flag("--dry-run", a->dry_run, "List what would be removed, and remove nothing");
  sub->footer("Example:\n  headrace clean --disk /scratch/offload --dry-run");
  sub->callback([a, &exit_code] {
    const bool given = !a->disk.empty();
    const std::string directory = given ? a->disk : default_offload_directory();
    if (directory.empty()) {
      throw UsageError("there is no home directory where offload files would be: give --disk DIR");
    }
    std::error_code error;
    if (std::filesystem::is_directory(directory, error)) {
      clean(directory, a->dry_run);
    } else if (given || std::filesystem::exists(directory, error)) {
      throw UsageError("--disk " + directory + " is not a directory; check the path");
    } else {
      std::printf("nothing to remove: there is no %s\n", directory.c_str());
    }
    exit_code = kExitDone;
  });
}

}  // namespace headrace
