#include "launch/logging.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <thread>

namespace headrace {

void set_up_logging() {
  spdlog::set_default_logger(spdlog::stderr_color_mt("headrace"));
  spdlog::set_pattern("%^%H:%M:%S %L%$ %v");
}

bool is_first_of_job() {
  // mpirun; srun --mpi=pmix; srun. The first that is set counts: the batch script sets the last,
  // too.
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name)) return std::string_view(rank) == "0";
  }
  return true;
}

void log_as_rank(const Communicator& communicator) {
  if (communicator.size() == 1) return;
  spdlog::set_pattern("%^%H:%M:%S %L%$ [rank " + std::to_string(communicator.rank()) + " on " +
                      communicator.host(communicator.rank()) + "] %v");
}

void wait_for_rank_0(double peer_timeout) {
  std::this_thread::sleep_for(std::chrono::duration<double>(std::min(3.0, peer_timeout / 2)));
}

}  // namespace headrace
