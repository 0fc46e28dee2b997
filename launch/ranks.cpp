#include "launch/ranks.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "comm/error.h"
#include "comm/launcher.h"
#include "comm/local_transport.h"
#include "comm/mpi_transport.h"
#include "launch/exit_code.h"
#include "launch/logging.h"
#include "runtime/error.h"
#include "runtime/json_bytes.h"

namespace headrace {
namespace {

void on_signal(int) { interrupted = true; }

int number_in(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? std::atoi(value) : 0;
}

// True if a launcher started this process as one of several (or one) MPI ranks. Throws CommError
// where one did whose ranks would each be alone.
bool under_launcher() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("PMIX_RANK")) return true;
  if (number_in("SLURM_STEP_NUM_TASKS") > 1) {
    throw UsageError("srun started several tasks that do not know each other; use srun --mpi=pmix");
  }
  if (number_in("PMI_SIZE") > 1) {
    throw CommError(
        "this is one of several processes of a launcher that is not Open MPI's (MPICH's, Intel "
        "MPI's or MVAPICH's mpirun or mpiexec: PMI_SIZE is set), which do not find each other; "
        "start headrace with Open MPI's mpirun (see mpirun --version), launch/mpirun.sh or srun "
        "--mpi=pmix, or take PMI_SIZE out of the environment to run it alone");
  }
  return false;
}

// Throws CommError if the launcher started others whom MPI knows nothing of.
void refuse_to_be_alone(const Communicator& communicator) {
  const int size = number_in("OMPI_COMM_WORLD_SIZE");
  const int ranks = size > 0 ? size : number_in("SLURM_STEP_NUM_TASKS");
  if (communicator.size() > 1 || ranks <= 1) return;
  throw CommError("the launcher started " + std::to_string(ranks) + " ranks, but MPI (" +
                  communicator.library() +
                  ") finds this one alone; start headrace with the mpirun of the Open MPI it was "
                  "built with (compare mpirun --version and headrace doctor), or under srun with "
                  "--mpi=pmix of the same PMIx");
}

// Throws UsageError if a rank runs another subcommand.
void refuse_other_commands(Communicator& ranks, const std::string& command) {
  const auto commands = share_with_all(ranks, command);
  for (size_t r = 0; r < commands.size(); ++r) {
    if (commands[r] == commands[0]) continue;
    throw UsageError("rank " + std::to_string(r) + " was started as headrace " +
                     commands[r].get<std::string>() + ", rank 0 as headrace " +
                     commands[0].get<std::string>() + "; give all ranks the same command");
  }
}

}  // namespace

std::atomic<bool> interrupted{false};

void handle_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESETHAND;
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  // What mpirun passes on of its own; see launch/mpirun.sh, which sends it more than once.
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);
}

int run_as_rank(const std::string& command, double peer_timeout,
                const std::function<int(const Wires&)>& rank_main) {
  handle_signals();
  const auto give_up = [](const std::exception_ptr& error, const std::string& why) {
    try {
      std::rethrow_exception(error);
    } catch (...) {
      const int code = report_error();
      spdlog::error("{}", why);
      _exit(code);
    }
  };
  if (!under_launcher()) {
    const auto transport = std::move(LocalTransport::create(1).front());
    return rank_main({*transport, *transport, give_up});
  }
  std::error_code no_folder;
  remove_leftovers_of_dead_jobs("/dev/shm", std::filesystem::temp_directory_path(no_folder),
                                own_host());
  MpiTransport transport(peer_timeout, [](const std::string& why) {
    spdlog::error("{}", why);
    _exit(kExitTryAgain);
  });
  refuse_to_be_alone(transport);
  log_as_rank(transport);
  transport.share(interrupted);  // a SIGTERM to any rank ends the run as one to rank 0
  try {
    refuse_other_commands(transport, command);
    return rank_main({transport, transport, give_up});
  } catch (...) {
    const Communicator::Idle not_missed(transport);  // before it has said why
    // Where all ranks find the same (a wrong option, a lost peer), rank 0 says it and ends the job.
    if (transport.rank() != 0) wait_for_rank_0(peer_timeout, error_code());
    const int code = report_error();
    transport.abort(code);
    return code;
  }
}

}  // namespace headrace
