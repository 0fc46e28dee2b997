// From one process to a rank of a run, alone or under mpirun and srun.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "runtime/pipeline/pipeline.h"

namespace headrace {

// Set by the first SIGINT, SIGTERM or SIGUSR1 after handle_signals; a second SIGINT or SIGTERM ends
// the process at once. Ranks tell each other.
extern std::atomic<bool> interrupted;
// Also turns writes past a limit or to a closed pipe into error codes.
void handle_signals();

// Runs `rank_main`, which is the subcommand `command`, with this process's wires and gives what it
// returns: an exit code. Under a launcher the wires are MPI's, and an error ends the whole job with
// its exit code; where all ranks find the same error, rank 0 says it. Throws what `rank_main`
// throws when there is one rank.
int run_as_rank(const std::string& command, double peer_timeout,
                const std::function<int(const Wires&)>& rank_main);

}  // namespace headrace
