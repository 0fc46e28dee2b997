// The process that started this rank (mpirun, orted, slurmstepd): whether it still lives, and what
// to tidy up when it does not.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <set>
#include <string>
#include <thread>

namespace headrace {

// A launcher that is killed cannot remove what its job keeps in shared memory and temporary files,
// and MPI ends the ranks about a second later without doing it either. So a thread of each rank
// watches the launcher and does it: the job's shared memory segments and, where the launcher was
// mpirun itself, its session directory.
class Launcher {
 public:
  Launcher();  // of the calling process
  ~Launcher();

  bool is_gone() const { return gone_; }
  // Takes note of the job's files that this process has mapped now. Before MPI_Finalize unmaps
  // them.
  void note_files();

 private:
  void watch();
  void remove_files();

  const pid_t pid_;
  std::atomic<bool> gone_{false};
  std::mutex mutex_;  // guards what follows
  std::set<std::filesystem::path> segments_, sessions_;
  bool stop_ = false;
  std::condition_variable stopped_;
  std::thread thread_;
};

// Removes what jobs of this user on this host whose processes are all gone have left (killed while
// MPI itself was starting, say): shared memory segments in `shared_memory` that no process has
// mapped, and session directories of mpirun processes that are gone in `temporary`. What bears the
// name of another host than `host` stays: its processes cannot be seen from here. So does what is
// younger than `age`: a job that starts now makes its files before it maps them.
void remove_leftovers_of_dead_jobs(const std::filesystem::path& shared_memory,
                                   const std::filesystem::path& temporary, const std::string& host,
                                   std::chrono::seconds age = std::chrono::minutes(2));

// As gethostname() says.
std::string own_host();

}  // namespace headrace
