// Builds an offload file from a checkpoint.
#pragma once

#include <functional>
#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "engine/memory/budget.h"
#include "engine/memory/offload_header.h"
#include "engine/memory/weight_layout.h"
#include "engine/thread_pool.h"

namespace headrace {

// Writes the file to `path` by way of a file beside it: `path` is the whole file or does not
// change, at whatever moment the process ends. The images stream through two buffers of at most 8
// MiB each from `budget`: one is packed while the other is written. The caller holds the
// OffloadLock of `path`. `say` gets a line about once a second. Throws DoesNotFit, IoError,
// ModelError and what `say` throws; the unfinished file is then removed.
void build_offload_file(const std::string& path, const OffloadHeader& header,
                        const Checkpoint& checkpoint, const WeightLayout& layout,
                        MemoryBudget& budget, ThreadPool& threads,
                        const std::function<void(const std::string&)>& say);

}  // namespace headrace
