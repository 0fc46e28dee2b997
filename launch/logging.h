// Logging goes to standard error; results never do.
#pragma once

#include "comm/communicator.h"

namespace headrace {

void set_up_logging();
// Whether this process is rank 0, or alone. Known before MPI is.
bool is_first_of_job();
// Where there are several ranks, each line carries its rank and host.
void log_as_rank(const Communicator& communicator);
// Time for rank 0 to write its results and to say what is wrong, which ends the job. A rank that
// comes back from it is the only one that found anything, and says so itself: before the others,
// which hear nothing from it meanwhile, call it lost after `peer_timeout` seconds. Where the end of
// rank 0 makes the launcher end this one with a SIGTERM, `exit_code` is what it ends with: srun
// takes the largest.
void wait_for_rank_0(double peer_timeout, int exit_code);

}  // namespace headrace
