#include "comm/mpi_calls.h"

#include <string>

#include "comm/error.h"

namespace headrace {

void check_mpi(int rc, const char* what) {
  if (rc == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(rc, text, &length);
  throw PeerLost(std::string("MPI: ") + what + ": " + std::string(text, length));
}

bool is_done(MPI_Request& request, MPI_Status* status) {
  int flag = 0;
  check_mpi(MPI_Test(&request, &flag, status), "transfer");
  return flag != 0;
}

}  // namespace headrace
