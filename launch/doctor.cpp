// headrace doctor: what the machines of a run have and do, and what to change.

#include "runtime/doctor/doctor.h"

#include <cstdio>
#include <memory>

#include "engine/device/device_module.h"
#include "launch/default_paths.h"
#include "launch/exit_code.h"
#include "launch/options.h"
#include "launch/ranks.h"
#include "launch/run_options.h"
#include "launch/subcommands.h"

namespace headrace {
namespace {

struct DoctorArguments {
  MachineOptions machine;
  double peer_timeout = kDefaultPeerTimeout;
};

int doctor(DoctorArguments& a) {
  return run_as_rank("doctor", a.peer_timeout, [&](const Wires& wires) {
    a.machine.cuda_module = beside_program(kCudaModule);
    if (a.machine.disk.empty()) a.machine.disk = default_offload_directory();
    const auto found = examine(a.machine, wires);
    if (found) {
      std::fputs(describe(*found).c_str(), stdout);
      const std::vector<std::string> all = warnings(*found);
      std::fputs(all.empty() ? "nothing to warn of\n" : "warnings\n", stdout);
      for (const std::string& warning : all) std::printf("  - %s\n", warning.c_str());
    }
    wires.communicator.finish();
    return int{kExitDone};
  });
}

}  // namespace

void add_doctor(CLI::App& app, int& exit_code) {
  auto a = std::make_shared<DoctorArguments>();
  CLI::App* sub = app.add_subcommand("doctor", "Show what the machines of a run have and do");
  sub->add_option("--threads", a->machine.threads,
                  "Compute threads per rank (default: its share of the node's cores)")
      ->check(positive_number());
  add_path_option(*sub, "--disk", a->machine.disk,
                  "Directory on a local disk for what does not fit in memory (default: the user's "
                  "cache directory)");
  add_target_option(*sub, a->machine.target);
  sub->add_option("--peer-timeout", a->peer_timeout,
                  "Seconds without a sign of life after which a rank is lost; a slow disk wants "
                  "some")
      ->check(seconds_to_wait())
      ->capture_default_str();
  sub->footer(
      "Takes a few seconds. Under mpirun or srun, every rank's machine and the links between "
      "them.\n"
      "Example:\n"
      "  mpirun -np 2 --host node1,node2 --bind-to none headrace doctor --disk /scratch/headrace");
  sub->callback([a, &exit_code] { exit_code = doctor(*a); });
}

}  // namespace headrace
