// The loops that keep the pipeline going: one for rank 0, which coordinates and is the first stage,
// one for every other rank.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <string>

#include "comm/activation_link.h"
#include "comm/communicator.h"
#include "runtime/pipeline/stage.h"
#include "runtime/schedule/coordinator.h"

namespace headrace {

// The ways a rank talks to the others; for one rank alone the link only lends its buffers.
struct Wires {
  Communicator& communicator;
  ActivationLink& link;
  // Ends this process, which cannot end by itself after this error, with these last words. Any
  // thread.
  std::function<void(const std::exception_ptr&, const std::string&)> give_up = {};

  bool is_first() const { return communicator.rank() == 0; }
  bool is_last() const { return communicator.rank() + 1 == communicator.size(); }
};

// Rank 0: until the coordinator is finished, or `interrupted` is set: then what is under way is
// taken back and the loop ends. `after_step` is called after each turn (progress display). Throws
// what stage, coordinator and communicator throw.
void run_coordinator(Coordinator& coordinator, Stage& stage, int64_t d_model, const Wires& wires,
                     const std::atomic<bool>& interrupted, const std::function<void()>& after_step);

// Any other rank: until rank 0 says that the run is over.
void run_stage(Stage& stage, int64_t d_model, const Wires& wires);

}  // namespace headrace
