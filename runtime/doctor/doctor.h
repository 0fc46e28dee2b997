// headrace doctor: is this machine, or this cluster, ready for a run?
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/doctor/link_check.h"
#include "runtime/doctor/machine_check.h"
#include "runtime/pipeline/pipeline.h"

namespace headrace {

struct Examination {
  std::vector<MachineFacts> ranks;
  std::vector<LinkFacts> links;  // from each rank to the next
};

// Every rank calls it with the same options; all machines are measured at the same time, as in a
// run, so ranks of one machine share its memory and disk. Rank 0 gets the result. Throws
// ResourceMissing, PeerLost.
std::optional<Examination> examine(const MachineOptions& options, const Wires& wires);

// What was found, for people.
std::string describe(const Examination& found);
// What would make a run slower than it need be or fail, each with what to do.
std::vector<std::string> warnings(const Examination& found);

}  // namespace headrace
