// How hidden states go from each rank to the next: from device to device, or over MPI.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/device_wire.h"

namespace headrace {

// What a rank brings to its hops.
struct HopEnd {
  std::string gpu;   // that it computes on: ranks of a host that share one have the same; or empty
  std::string nccl;  // "NCCL 2.28.9"; empty where there is none to use
  std::string why_no_nccl;
};

struct Hop {
  bool over_wire = false;
  std::string how;      // "over NCCL 2.28.9", "over MPI: why"; empty between two CPUs
  bool failed = false;  // NCCL should have been used and could not
};

// The hop to the rank after `from`. `link`: auto, mpi or nccl. Throws ResourceMissing where it must
// be NCCL and cannot.
Hop choose_hop(const std::string& link, const Communicator& ranks, int from, const HopEnd& sends,
               const HopEnd& receives);

// Every rank calls it: all hops of the pipeline, by the rank that sends, the same on every rank.
// Throws UsageError where ranks have different links, ResourceMissing, PeerLost.
std::vector<Hop> choose_hops(Communicator& ranks, const std::string& link, const HopEnd& mine);

// A rank's ends; null where its hop is not over a wire.
struct HopWires {
  std::unique_ptr<DeviceWire> previous, next;
};

// Every rank calls it with the hops that were chosen: connects those over wires, at both ends or at
// neither within `timeout`. What cannot be connected goes over MPI and says why in `hops`.
// `library` may be null on a rank without a wire. Throws ResourceMissing where `link` says that it
// must be NCCL, PeerLost.
HopWires connect_hops(Communicator& ranks, DeviceWires* library, int device,
                      const std::string& link, std::chrono::duration<double> timeout,
                      std::vector<Hop>& hops);

// "stage 1 sends hidden states to stage 2 over NCCL 2.28.9"; empty where there is nothing to say.
std::string describe(const Hop& hop, int from);

}  // namespace headrace
