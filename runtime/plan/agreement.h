// The exchange at the start of a run: every rank tells rank 0 what it has, rank 0 checks that all
// run the same program on the same model, and tells what was settled.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "comm/communicator.h"

namespace headrace {

// What a rank has room for, or what all of them have: the least of each, but for the longest step.
struct Agreement {
  int64_t kv_pages = 0;        // of all sequences
  int64_t sequence_pages = 0;  // of one
  int64_t slots = 0;           // sequences
  int64_t step_rows = 0;       // rows of a step
  // The arithmetic of all ranks, or that of each in order: "f32", "f16 on NVIDIA A100, f32".
  std::string math;
  int64_t longest_step = 0;  // rows of the longest step that one of them has room for
  // Thousandths of tokens per second that are expected of the stage with its own steps; 0: nobody
  // knows.
  int64_t served = 0;
};

// What one rank brings. All but `room`, `math` and `layers` must be the same on every rank.
struct RankFacts {
  std::string version;      // of headrace
  std::string fingerprint;  // of the model
  std::string numerics;     // what else decides the bits: KV format, wire
  std::string schedule;     // slots, step rows and split that the command line gave
  Agreement room;
  std::string math = "f32";  // what the stage is computed in
  int first_layer = 0, end_layer = 0;  // of the stage
};

// Throws UsageError on rank 0, naming both ranks, if facts differ; PeerLost.
Agreement agree(Communicator& communicator, const RankFacts& facts);

// Whether sequences can share KV pages.
struct PageSharing {
  std::string why_not;  // empty: they can
  // That all sequences in flight may have, shared ones counted for each.
  int64_t table_pages = std::numeric_limits<int64_t>::max();
};

// Whether they can on all ranks: the first reason why not, and the least of the pages. Throws
// PeerLost.
PageSharing agree(Communicator& communicator, const PageSharing& mine);

}  // namespace headrace
