// The exchange at the start of a run: every rank tells rank 0 what it has, rank 0 checks that all
// run the same program on the same model, and tells what was settled.
#pragma once

#include <cstdint>
#include <string>

#include "comm/communicator.h"

namespace headrace {

// What one rank brings. All but `kv_pages` must be the same on every rank.
struct RankFacts {
  std::string version;      // of headrace
  std::string fingerprint;  // of the model
  std::string numerics;     // what else decides the bits: KV format, wire
  std::string schedule;     // slots, step rows and split that the command line gave
  int64_t kv_pages = 0;     // its stage has room for
};

// The KV pages of the stage that has fewest. Throws UsageError on rank 0, naming both ranks, if
// facts differ; PeerLost.
int64_t agree(Communicator& communicator, const RankFacts& facts);

}  // namespace headrace
