// Messages and hidden states under way over MPI.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "comm/activation_link.h"
#include "comm/communicator.h"
#include "comm/mpi_calls.h"

namespace headrace {

// No lock: one call at once, and none beside other calls of MPI. Buffers and messages are MPI's
// until cancel(), or until the job is aborted. What fails throws PeerLost.
//
// Calls of MPI are few in a turn that finds nothing: each drives all transfers on and gives the
// core away. So messages have a communicator to themselves, where one probe finds any of them.
class MpiTransfers {
 public:
  using HiddenBuffer = ActivationLink::HiddenBuffer;

  // `messages`: of all ranks, for nothing else.
  MpiTransfers(int rank, MPI_Comm messages) : rank_(rank), messages_(messages) {}

  // Drives everything on; true if something moved.
  bool turn();
  // Something is half way, so the next turns should come soon.
  bool under_way() const { return !sending_.empty() || !arriving_.empty(); }
  bool all_sent() const { return queued_.empty() && sending_.empty(); }
  // Gives up the receives that are posted.
  void cancel();
  void observe(Communicator::Observer observer) { observer_ = std::move(observer); }

  // Tells the observer.
  void note(const Transfer& transfer) const {
    if (observer_) observer_(transfer);
  }

  // The next turn starts it.
  void send(int to, Channel channel, Bytes message);
  bool has(int from, Channel channel) const;
  // Nothing if none has come.
  std::optional<Bytes> take(int from, Channel channel);

  // See ActivationLink. Calls that need a buffer that is not there are errors of the caller's.
  void set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives);
  bool has_free() const { return !free_.empty(); }
  HiddenBuffer take_free();
  bool has_full() const { return !full_.empty(); }
  HiddenBuffer take_full(size_t bytes);
  void send(HiddenBuffer buffer, size_t bytes);
  void recycle(HiddenBuffer buffer) { release(index_of(buffer)); }

 private:
  using Clock = std::chrono::steady_clock;

  struct Sending {
    int to;
    int tag;
    Bytes message;    // of a message
    int buffer = -1;  // of hidden states
    size_t bytes = 0;
    Clock::time_point begin = Clock::now();
    MPI_Request request = MPI_REQUEST_NULL;
  };
  struct Arriving {
    int from;
    int tag;
    Bytes message;
    Clock::time_point begin;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  struct Buffer {
    HiddenBuffer memory;
    MPI_Request receive = MPI_REQUEST_NULL;
  };

  bool start_sends();
  bool end_sends();
  void probe();
  bool collect_messages();
  bool collect_hidden();
  void release(int buffer);
  int index_of(HiddenBuffer buffer) const;
  void tell_observer(bool sent, int peer, int tag, size_t bytes, Clock::time_point begin) const;

  const int rank_;
  const MPI_Comm messages_;
  Communicator::Observer observer_;
  Clock::time_point last_turn_ = Clock::now();
  std::map<std::pair<int, int>, std::deque<Bytes>> inbox_;  // (from, tag)
  std::deque<Sending> queued_, sending_;
  std::deque<Arriving> arriving_;
  std::vector<Buffer> buffers_;
  bool receives_ = false;  // into buffers that nobody uses
  std::deque<int> free_;
  std::deque<int> posted_;                   // in matching order
  std::deque<std::pair<int, size_t>> full_;  // buffer, bytes
};

}  // namespace headrace
