// Judges the signs of life that ranks send each other: who is lost.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace headrace {

enum class PeerState : uint32_t {
  kWorking,  // must show progress
  kWaiting,  // for another rank
  kIdle,     // for something else, as input; or not watched yet
  kGone,     // has finished, is not missed
};

// What a rank tells every other one several times per timeout.
struct SignOfLife {
  uint64_t progress = 0;  // grows while the rank works
  PeerState state = PeerState::kIdle;
  uint32_t interrupted = 0;  // this rank was told to end
};

// What one rank knows of the others. It has no clock and no lock: whoever uses it passes the time
// and sees to one call at once.
class PeerWatch {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Seconds = std::chrono::duration<double>;

  PeerWatch(int rank, int size, Seconds timeout, Time now);

  // Host names by rank, for messages.
  void name_hosts(std::vector<std::string> hosts) { hosts_ = std::move(hosts); }
  const std::string& host(int rank) const { return hosts_[rank]; }

  PeerState own_state() const { return state_; }
  void set_own_state(PeerState state) { set(state, Time::max()); }
  // Who says nothing more is stuck when that time is over.
  void set_idle(std::chrono::minutes at_most, Time now) {
    const bool ends = at_most < std::chrono::minutes::max();
    set(PeerState::kIdle, ends ? now + at_most : Time::max());
  }
  // What the others shall hear.
  PeerState told_state(Time now) const {
    return state_ == PeerState::kIdle && now > idle_until_ ? PeerState::kWorking : state_;
  }

  void heard(int rank, const SignOfLife& life, Time now);
  // A message of the job has left or come: not all ranks wait. What ranks tell of themselves is a
  // sample, and of short steps it may always be the wait between two of them.
  void moved(Time now) { all_waiting_since_ = now; }
  // Every other rank has said that it is gone.
  bool others_are_gone() const;

  // Call it often: a gap of half the timeout means that this process itself was stopped, and the
  // others are not to blame. Throws PeerLost, which names a rank that has neither waited nor made
  // progress for the timeout, or says that all ranks wait for each other and nothing has
  // moved for twice as long.
  void judge(Time now);

 private:
  struct Peer {
    SignOfLife last;
    Time alive;  // when it last showed that it works or waits
  };
  void set(PeerState state, Time idle_until) {
    state_ = state;
    idle_until_ = idle_until;
  }
  std::string name(int rank) const;
  bool all_wait() const;

  const int rank_;
  const Seconds timeout_;
  PeerState state_ = PeerState::kIdle;
  Time idle_until_ = Time::max();
  std::vector<Peer> peers_;
  std::vector<std::string> hosts_;
  Time last_judged_, all_waiting_since_;
};

}  // namespace headrace
