// Logging goes to standard error; results never do.
#pragma once

#include "comm/communicator.h"

namespace headrace {

void set_up_logging();
// False for the processes of a job that need not repeat what rank 0 says about the command line.
// Known before MPI is.
bool is_first_of_job();
// Where there are several ranks, each line carries its rank and host.
void log_as_rank(const Communicator& communicator);
// Time for rank 0 to write its results and to say what is wrong before another rank does.
void wait_for_rank_0();

}  // namespace headrace
