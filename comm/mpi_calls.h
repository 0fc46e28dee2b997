// What every use of MPI needs: its header without the C++ bindings, and its errors as exceptions.
#pragma once

#define OMPI_SKIP_MPICXX 1  // MPI's C interface only
#include <mpi.h>

namespace headrace {

// Tags of the transfers that belong to no Channel.
inline constexpr int kLifeTag = 4;
inline constexpr int kHiddenTag = 5;

// Throws PeerLost with MPI's own text. `what`: "send", "receive", ...
void check_mpi(int rc, const char* what);
// Tests a request without waiting; drives MPI on.
bool is_done(MPI_Request& request, MPI_Status* status = MPI_STATUS_IGNORE);

}  // namespace headrace
