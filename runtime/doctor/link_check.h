// How fast messages go between neighbours of the pipeline.
#pragma once

#include <optional>

#include "comm/communicator.h"

namespace headrace {

struct LinkFacts {
  double latency_s = 0;  // of an 8-byte message, half of there and back
  double rate = 0;       // bytes per second of 4 MiB messages, one after the other
};

// Every rank calls it; one pair after the other measures, while the rest waits. The link to the
// next rank; nothing on the last one. Includes what headrace's own waiting adds. Throws PeerLost.
std::optional<LinkFacts> check_links(Communicator& ranks);

}  // namespace headrace
