// Messages between the ranks of a pipeline: step messages forward, sampled tokens back to rank 0,
// and the exchange at start. Hidden states go over an ActivationLink.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace headrace {

using Bytes = std::vector<std::byte>;

// Messages of one channel between two ranks arrive in the order they were sent.
enum class Channel : int { kSetup = 1, kStep = 2, kTokens = 3 };

// A message or hidden states that have gone out or come in.
struct Transfer {
  const char* what;  // static: "step", "tokens", "hidden states"
  bool sent = false;
  int peer = 0;
  size_t bytes = 0;
  // Sent: from the caller's send() to the end of the transfer. Received: `begin` is when it was
  // last seen not to be there.
  std::chrono::steady_clock::time_point begin, end;
};

// Every rank watches every other one: a rank that gives no sign of life for the peer timeout, or
// that is neither waiting nor making progress for so long, is lost; every wait then ends with
// PeerLost, which names it. One thread uses a Communicator and its ActivationLink.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& host(int rank) const = 0;
  // The library that carries the messages, and its version.
  virtual std::string library() const = 0;
  // Ranks on this rank's host, itself included.
  int ranks_on_host() const;
  // Of them, how many come before this one.
  int place_on_host() const;

  // Takes the message over and returns at once.
  virtual void send(int to, Channel channel, Bytes message) = 0;
  // The next message of a channel. Throws PeerLost.
  virtual Bytes receive(int from, Channel channel) = 0;
  // The same without waiting.
  virtual std::optional<Bytes> try_receive(int from, Channel channel) = 0;

  // How this rank shows that it is at work and not stuck: a number that grows while it computes.
  // Set before anything that takes long. Called from another thread.
  virtual void watch_progress(std::function<uint64_t()> progress) = 0;
  // While one lives, and no longer than it is said to take at most, this rank counts as waiting,
  // not as stuck.
  class Idle {
   public:
    using Minutes = std::chrono::minutes;
    static constexpr Minutes kLongest{30};
    static constexpr Minutes kForInput = Minutes::max();  // who writes it may take any time

    explicit Idle(Communicator& communicator, Minutes at_most = kLongest)
        : communicator_(communicator), at_most_(at_most) {
      go_on();
    }
    ~Idle() { communicator_.set_busy(); }
    Idle(const Idle&) = delete;
    Idle& operator=(const Idle&) = delete;

    // Something was seen to move: as long again from now on.
    void go_on() { communicator_.set_idle(at_most_); }

   private:
    Communicator& communicator_;
    const Minutes at_most_;
  };

  // While one lives, this rank waits for another one in a way that its communicator knows nothing
  // of.
  class Waiting {
   public:
    explicit Waiting(Communicator& communicator) : communicator_(communicator) {
      communicator_.set_waiting(true);
    }
    ~Waiting() { communicator_.set_waiting(false); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

    // Throws PeerLost if a rank is lost. Does not wait.
    void check() { communicator_.check_peers(); }

   private:
    Communicator& communicator_;
  };

  // Gets every transfer from now on except those of the setup channel; an empty one ends that, and
  // is not called any more on return. Called from another thread, must be quick. In-process ranks
  // report none.
  using Observer = std::function<void(const Transfer&)>;
  virtual void observe(Observer) {}
  // Tells the observer of a transfer that did not go by the communicator.
  virtual void note(const Transfer&) {}

  // All ranks call it at the end of a run, when no message is under way; afterwards a rank may go
  // without being missed.
  virtual void finish() = 0;
  // Stops all transfers at once, so that what they use may be destroyed; only abort() may follow,
  // or nothing. Idempotent, and a no-op after finish().
  virtual void halt() = 0;
  // Ends every rank of the job with this exit code. Does not return under MPI; a no-op for
  // in-process ranks.
  virtual void abort(int exit_code) = 0;

 protected:
  virtual void set_idle(std::chrono::minutes at_most) = 0;
  virtual void set_busy() = 0;
  virtual void set_waiting(bool waiting) = 0;
  virtual void check_peers() = 0;
};

// Every rank's message of the setup channel, by rank, on rank 0 (empty elsewhere).
std::vector<Bytes> gather(Communicator& communicator, Bytes message);
// Rank 0's message, on every rank.
Bytes broadcast(Communicator& communicator, Bytes message);

}  // namespace headrace
