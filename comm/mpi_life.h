// Exchanges signs of life over MPI.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "comm/mpi_calls.h"
#include "comm/peer_watch.h"

namespace headrace {

// Tells every other rank what this one does and hears them; see PeerWatch for what follows from it.
// No lock: one call at once, and none beside other calls of MPI. Its memory is MPI's until
// cancel(), or until the job is aborted.
class MpiLife {
 public:
  MpiLife(int rank, int size, PeerWatch::Seconds timeout);

  PeerWatch& watch() { return watch_; }
  const PeerWatch& watch() const { return watch_; }
  // The number that shows that this rank works; called from turn().
  void watch_progress(std::function<uint64_t()> progress) { progress_ = std::move(progress); }

  // What is set on one rank becomes set on all.
  void share(std::atomic<bool>& interrupted) { interrupted_ = &interrupted; }

  // Hears, tells if it is time to, and judges. True if something was heard or told. Throws
  // PeerLost.
  bool turn(PeerWatch::Time now);

  // From now on this rank is gone: the next turn tells so.
  void leave();
  // Every other rank is gone and has been told that this one is.
  bool is_over() const;
  // Gives up the receives that are posted; waits for the last sends.
  void cancel();

 private:
  struct Peer {
    SignOfLife incoming, outgoing;  // of the posted receive and of the send under way
    MPI_Request receive = MPI_REQUEST_NULL;
    MPI_Request send = MPI_REQUEST_NULL;
  };
  bool hear(PeerWatch::Time now);
  bool hear(int rank, PeerWatch::Time now);
  void post(int rank);
  void tell();

  const int rank_, size_;
  const PeerWatch::Seconds period_;  // of telling
  PeerWatch watch_;
  std::vector<Peer> peers_;
  std::function<uint64_t()> progress_;
  std::atomic<bool>* interrupted_ = nullptr;
  PeerWatch::Time last_told_{}, last_heard_{};
};

}  // namespace headrace
