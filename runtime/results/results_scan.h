// Reading a results file back: which requests it holds, and up to where it can be trusted.
#pragma once

#include <cstdint>

#include "runtime/requests/id_set.h"
#include "runtime/results/file_io.h"

namespace headrace {

struct ResultsScan {
  IdSet ids;
  IdSet lines;              // ids with the digests of their lines, custom_id_hash(id, digest)
  int64_t records = 0;
  int64_t errors = 0;       // of the records, those that are error records
  int64_t whole_bytes = 0;  // where the last whole record ends; what follows is torn
};

// Reads `file` from its start. Memory: its longest line and the hashes of its ids.
// The last line is torn if it has no line break or is no record. Throws IoError, with file and
// line, if an earlier line is no record or an id stands twice: nothing is repaired by guessing.
ResultsScan scan_results(const OpenFile& file);

}  // namespace headrace
