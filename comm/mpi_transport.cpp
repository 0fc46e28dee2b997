#include "comm/mpi_transport.h"

#define OMPI_SKIP_MPICXX 1  // MPI's C interface only
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "comm/deadline.h"
#include "comm/error.h"
#include "comm/launcher.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr int kLifeTag = 4;
constexpr int kHiddenTag = 5;

// Sends that MPI has at once. Thousands fill its queues, and each call then gives the core away: a
// turn would take seconds, with the mutex held.
constexpr size_t kMostSending = 32;

enum class State : uint32_t { kWorking, kWaiting, kIdle, kGone };

// The sign of life each rank sends to every other.
struct Life {
  uint64_t progress = 0;
  State state = State::kIdle;
  uint32_t unused = 0;
};

struct Peer {
  std::string host;
  Life life;                // the last one heard
  Life incoming, outgoing;  // buffers of the posted receive and of the send under way
  MPI_Request receive = MPI_REQUEST_NULL;
  MPI_Request send = MPI_REQUEST_NULL;
  Clock::time_point alive;  // when it last showed that it works or waits
};

struct Sending {
  int to;
  int tag;
  Bytes message;    // of a message
  int buffer = -1;  // of hidden states: index of the link buffer
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

}  // namespace

struct MpiTransport::Impl {
  int rank = 0, size = 1;
  Seconds timeout;
  std::vector<Peer> peers;
  Launcher launcher;
  Stuck stuck;

  std::mutex mutex;  // guards everything below and every MPI call
  std::condition_variable work, arrived;
  std::map<std::pair<int, int>, std::deque<Bytes>> inbox;  // (from, tag)
  std::deque<Sending> queued;
  std::deque<Sending> sending;
  std::deque<Arriving> arriving;

  std::vector<std::span<std::byte>> buffers;
  std::vector<MPI_Request> buffer_receives;
  std::deque<int> free_buffers;
  std::deque<int> posted;                   // in matching order
  std::deque<std::pair<int, size_t>> full;  // index, bytes

  std::function<uint64_t()> progress;
  Observer observer;
  State state = State::kIdle;
  Clock::time_point last_life{}, last_turn = Clock::now(), all_waiting_since = Clock::now();
  std::string failure;  // why every wait must end
  bool stop = false;
  bool finished = false;
  std::thread thread;

  ~Impl() { join(); }  // also where the transport's constructor throws

  static void check(int rc, const char* what) {
    if (rc == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(rc, text, &length);
    throw PeerLost(std::string("MPI: ") + what + ": " + std::string(text, length));
  }

  static bool done(MPI_Request& request, MPI_Status* status = MPI_STATUS_IGNORE) {
    int flag = 0;
    check(MPI_Test(&request, &flag, status), "transfer");
    return flag != 0;
  }

  std::string name(int r) const {
    return "rank " + std::to_string(r) +
           (peers[r].host.empty() ? "" : " (host " + peers[r].host + ")");
  }

  // For the calls of MPI that wait for other ranks and cannot be given up.
  void guard(std::optional<Deadline>& deadline, const std::string& why) const {
    if (stuck) deadline.emplace(timeout, [this, why] { stuck(why); });
  }

  // ---- the progress thread ----

  void run() {
    std::unique_lock lock(mutex);
    auto idle_since = Clock::now();
    auto pause = std::chrono::microseconds(20);
    while (!stop) {
      bool moved = false;
      try {
        moved = turn();
      } catch (const std::exception& e) {
        failure = e.what();
      }
      if (!failure.empty()) {
        arrived.notify_all();
        return;
      }
      if (moved) {
        arrived.notify_all();
        idle_since = Clock::now();
        pause = std::chrono::microseconds(20);
      }
      if (Clock::now() - idle_since < std::chrono::microseconds(50)) {
        lock.unlock();
        std::this_thread::yield();
        lock.lock();
      } else {
        work.wait_for(lock, pause);
        pause = std::min(2 * pause, std::chrono::microseconds(200));
      }
    }
  }

  // Drives everything on once; true if something moved.
  bool turn() {
    bool moved = false;
    while (!queued.empty() && sending.size() < kMostSending) {
      start(std::move(queued.front()));
      queued.pop_front();
      moved = true;
    }
    for (auto it = sending.begin(); it != sending.end();) {
      if (!done(it->request)) {
        ++it;
        continue;
      }
      tell_observer(true, it->to, it->tag, it->bytes, it->begin);
      if (it->buffer >= 0) release_buffer(it->buffer);
      it = sending.erase(it);
      moved = true;
    }
    moved |= collect_messages();
    moved |= collect_hidden();
    watch();
    return moved;
  }

  void start(Sending s) {
    sending.push_back(std::move(s));
    Sending& op = sending.back();
    const void* data = op.buffer >= 0 ? buffers[op.buffer].data() : op.message.data();
    check(MPI_Isend(data, static_cast<int>(op.bytes), MPI_BYTE, op.to, op.tag, MPI_COMM_WORLD,
                    &op.request),
          "send");
  }

  bool collect_messages() {
    bool moved = false;
    for (const Channel channel : {Channel::kSetup, Channel::kStep, Channel::kTokens}) {
      const int tag = static_cast<int>(channel);
      for (;;) {
        int flag = 0, bytes = 0;
        MPI_Message message;
        MPI_Status status;
        check(MPI_Improbe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &flag, &message, &status), "probe");
        if (!flag) break;
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        arriving.push_back({status.MPI_SOURCE, tag, Bytes(static_cast<size_t>(bytes)), last_turn});
        check(MPI_Imrecv(arriving.back().message.data(), bytes, MPI_BYTE, &message,
                         &arriving.back().request),
              "receive");
      }
    }
    // In order of arrival per (rank, channel): a later one waits for an earlier one.
    for (auto it = arriving.begin(); it != arriving.end();) {
      const bool earlier = std::any_of(arriving.begin(), it, [&](const Arriving& a) {
        return a.from == it->from && a.tag == it->tag;
      });
      if (earlier || !done(it->request)) {
        ++it;
        continue;
      }
      tell_observer(false, it->from, it->tag, it->message.size(), it->begin);
      inbox[{it->from, it->tag}].push_back(std::move(it->message));
      it = arriving.erase(it);
      moved = true;
    }
    return moved;
  }

  bool collect_hidden() {
    bool moved = false;
    while (!posted.empty()) {
      const int index = posted.front();
      MPI_Status status;
      if (!done(buffer_receives[index], &status)) break;
      int bytes = 0;
      MPI_Get_count(&status, MPI_BYTE, &bytes);
      posted.pop_front();
      tell_observer(false, rank - 1, kHiddenTag, static_cast<size_t>(bytes), last_turn);
      full.emplace_back(index, static_cast<size_t>(bytes));
      moved = true;
    }
    return moved;
  }

  void tell_observer(bool sent, int peer, int tag, size_t bytes, Clock::time_point begin) const {
    if (!observer || tag == static_cast<int>(Channel::kSetup)) return;
    const char* what = tag == kHiddenTag                           ? "hidden states"
                       : tag == static_cast<int>(Channel::kTokens) ? "tokens"
                                                                   : "step";
    observer({what, sent, peer, bytes, begin, Clock::now()});
  }

  // A buffer that nobody uses: the first stage takes it from the free list, the others post it.
  void release_buffer(int index) {
    if (rank == 0) {
      free_buffers.push_back(index);
      return;
    }
    posted.push_back(index);
    check(MPI_Irecv(buffers[index].data(), static_cast<int>(buffers[index].size()), MPI_BYTE,
                    rank - 1, kHiddenTag, MPI_COMM_WORLD, &buffer_receives[index]),
          "receive");
  }

  // ---- signs of life ----

  void watch() {
    const auto now = Clock::now();
    if (now - last_turn >
        timeout / 2) {  // this process itself was stopped: others are not to blame
      for (Peer& peer : peers) peer.alive = now;
    }
    last_turn = now;
    if (launcher.is_gone()) {
      failure = "the launcher (mpirun or srun) of this rank is gone; run again with --resume";
      return;
    }
    for (int r = 0; r < size; ++r) {
      if (r != rank) hear(r, now);
    }
    if (now - last_life > std::min(Seconds(1.0), timeout / 5)) {
      last_life = now;
      tell();
      arrived.notify_all();
    }
    for (int r = 0; r < size; ++r) {
      const Peer& peer = peers[r];
      if (r == rank || peer.life.state == State::kGone || now - peer.alive < timeout) continue;
      char seconds[32];
      std::snprintf(seconds, sizeof seconds, "%.1f", timeout.count());
      failure =
          name(r) + " gave no sign of life for " + seconds +
          " s (--peer-timeout): its process is stopped or stuck, or its node or link is down; "
          "see to it and run again with --resume";
    }
    const bool all_wait = size > 1 && state == State::kWaiting &&
                          std::all_of(peers.begin(), peers.end(), [&](const Peer& p) {
                            return &p == &peers[rank] || p.life.state == State::kWaiting;
                          });
    if (!all_wait) all_waiting_since = now;
    if (now - all_waiting_since > 2 * timeout) {
      failure = "all ranks wait for each other: a message was lost; run again with --resume";
    }
  }

  void hear(int r, Clock::time_point now) {
    Peer& peer = peers[r];
    if (peer.receive == MPI_REQUEST_NULL) {
      post_life(r);
    } else if (done(peer.receive)) {
      if (peer.incoming.state != State::kWorking || peer.incoming.progress != peer.life.progress) {
        peer.alive = now;
      }
      peer.life = peer.incoming;
      post_life(r);
      arrived.notify_all();
    }
  }

  void post_life(int r) {
    check(MPI_Irecv(&peers[r].incoming, sizeof(Life), MPI_BYTE, r, kLifeTag, MPI_COMM_WORLD,
                    &peers[r].receive),
          "receive");
  }

  // Skips a rank that has not taken the last one yet.
  void tell() {
    const Life life{progress ? progress() : 0, state, 0};
    for (int r = 0; r < size; ++r) {
      Peer& peer = peers[r];
      if (r == rank || (peer.send != MPI_REQUEST_NULL && !done(peer.send))) continue;
      peer.outgoing = life;
      check(MPI_Isend(&peer.outgoing, sizeof(Life), MPI_BYTE, r, kLifeTag, MPI_COMM_WORLD,
                      &peer.send),
            "send");
    }
  }

  // ---- the caller's side ----

  template <typename Ready>
  void wait(Ready ready) {
    std::unique_lock lock(mutex);
    const State before = state;
    state = before == State::kGone ? before : State::kWaiting;
    arrived.wait(lock, [&] { return !failure.empty() || ready(); });
    state = before;
    if (!ready()) throw PeerLost(failure);
  }

  void enqueue(Sending s) {
    const std::lock_guard lock(mutex);
    if (!failure.empty()) throw PeerLost(failure);
    queued.push_back(std::move(s));
    work.notify_one();
  }

  int index_of(std::span<std::byte> buffer) const {
    for (size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].data() == buffer.data()) return static_cast<int>(i);
    }
    throw std::logic_error("not a buffer of this link");
  }

  void join() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
      work.notify_one();
    }
    if (thread.joinable()) thread.join();
  }
};

MpiTransport::MpiTransport(double peer_timeout_s, Stuck stuck) : impl_(std::make_unique<Impl>()) {
  impl_->timeout = Seconds(peer_timeout_s);
  impl_->stuck = std::move(stuck);
  std::optional<Deadline> deadline;
  impl_->guard(
      deadline,
      "MPI did not start within --peer-timeout: a rank did not come up, is stopped, or its "
      "node cannot be reached; see to it and run again");
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) {
    throw CommError(
        "MPI could not be initialised; check the mpirun or srun line (srun needs --mpi=pmix)");
  }
  if (provided < MPI_THREAD_SERIALIZED) {
    throw CommError(
        "this MPI has no MPI_THREAD_SERIALIZED; use an Open MPI built with thread support");
  }
  deadline.reset();
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &impl_->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &impl_->size);
  impl_->peers.resize(impl_->size);
  for (Peer& peer : impl_->peers) peer.alive = Clock::now();
  impl_->thread = std::thread([this] { impl_->run(); });

  char own[256] = "";
  gethostname(own, sizeof own - 1);
  Bytes names;
  const auto append = [&](const std::string& text) {
    for (const char c : text) names.push_back(static_cast<std::byte>(c));
    names.push_back(std::byte{0});
  };
  const std::string mine(own);
  Bytes message(mine.size());
  std::memcpy(message.data(), mine.data(), mine.size());
  for (const Bytes& host : gather(*this, std::move(message))) {
    append(std::string(reinterpret_cast<const char*>(host.data()), host.size()));
  }
  const Bytes all = broadcast(*this, std::move(names));
  impl_->launcher.note_files();
  const std::lock_guard lock(impl_->mutex);
  const char* next = reinterpret_cast<const char*>(all.data());
  for (Peer& peer : impl_->peers) {
    peer.host = next;
    next += peer.host.size() + 1;
  }
}

MpiTransport::~MpiTransport() {
  impl_->join();
  if (!impl_->finished) return;
  std::optional<Deadline> deadline;
  impl_->guard(deadline,
               "the results are complete, but MPI did not end within --peer-timeout: a rank that "
               "was done is stopped or gone; --resume will find nothing left to do");
  MPI_Finalize();
}

void MpiTransport::set_buffers(const std::vector<HiddenBuffer>& buffers) {
  const std::lock_guard lock(impl_->mutex);
  impl_->buffers = buffers;
  impl_->buffer_receives.assign(buffers.size(), MPI_REQUEST_NULL);
  for (size_t i = 0; i < buffers.size(); ++i) impl_->release_buffer(static_cast<int>(i));
}

int MpiTransport::rank() const { return impl_->rank; }
int MpiTransport::size() const { return impl_->size; }
const std::string& MpiTransport::host(int rank) const { return impl_->peers[rank].host; }

void MpiTransport::send(int to, Channel channel, Bytes message) {
  const size_t bytes = message.size();
  impl_->enqueue({to, static_cast<int>(channel), std::move(message), -1, bytes});
}

Bytes MpiTransport::receive(int from, Channel channel) {
  std::deque<Bytes>* queue = nullptr;
  {
    const std::lock_guard lock(impl_->mutex);
    queue = &impl_->inbox[{from, static_cast<int>(channel)}];
  }
  impl_->wait([&] { return !queue->empty(); });
  return *try_receive(from, channel);
}

std::optional<Bytes> MpiTransport::try_receive(int from, Channel channel) {
  const std::lock_guard lock(impl_->mutex);
  auto& queue = impl_->inbox[{from, static_cast<int>(channel)}];
  if (queue.empty()) {
    if (!impl_->failure.empty()) throw PeerLost(impl_->failure);
    return std::nullopt;
  }
  Bytes message = std::move(queue.front());
  queue.pop_front();
  return message;
}

void MpiTransport::watch_progress(std::function<uint64_t()> progress) {
  const std::lock_guard lock(impl_->mutex);
  impl_->progress = std::move(progress);
  impl_->state = State::kWorking;
}

void MpiTransport::observe(Observer observer) {
  const std::lock_guard lock(impl_->mutex);
  impl_->observer = std::move(observer);
}

void MpiTransport::set_idle(bool idle) {
  const std::lock_guard lock(impl_->mutex);
  impl_->state = idle ? State::kIdle : State::kWorking;
}

void MpiTransport::finish() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->state = State::kGone;
    impl_->last_life = {};  // tell at once
    impl_->work.notify_one();
  }
  // Everybody has said so, and everybody has taken what this rank sent.
  impl_->wait([this] {
    const bool all_gone =
        std::all_of(impl_->peers.begin(), impl_->peers.end(), [this](const Peer& p) {
          return &p == &impl_->peers[impl_->rank] || p.life.state == State::kGone;
        });
    const bool told = std::all_of(impl_->peers.begin(), impl_->peers.end(), [this](const Peer& p) {
      return &p == &impl_->peers[impl_->rank] || p.outgoing.state == State::kGone;
    });
    return all_gone && told && impl_->queued.empty() && impl_->sending.empty();
  });
  impl_->join();
  for (Peer& peer : impl_->peers) {
    if (peer.receive != MPI_REQUEST_NULL) {
      MPI_Cancel(&peer.receive);
      MPI_Request_free(&peer.receive);
    }
    if (peer.send != MPI_REQUEST_NULL) MPI_Wait(&peer.send, MPI_STATUS_IGNORE);
  }
  for (const int index : impl_->posted) {
    MPI_Cancel(&impl_->buffer_receives[index]);
    MPI_Request_free(&impl_->buffer_receives[index]);
  }
  impl_->finished = true;
}

void MpiTransport::halt() { impl_->join(); }

void MpiTransport::abort(int exit_code) {
  impl_->join();
  if (impl_->launcher.is_gone()) _exit(exit_code);  // nobody is left to ask
  MPI_Abort(MPI_COMM_WORLD, exit_code);
}

MpiTransport::HiddenBuffer MpiTransport::take() {
  impl_->wait([this] { return !impl_->free_buffers.empty(); });
  const std::lock_guard lock(impl_->mutex);
  const int index = impl_->free_buffers.front();
  impl_->free_buffers.pop_front();
  return impl_->buffers[index];
}

MpiTransport::HiddenBuffer MpiTransport::receive(size_t bytes) {
  impl_->wait([this] { return !impl_->full.empty(); });
  const std::lock_guard lock(impl_->mutex);
  const auto [index, got] = impl_->full.front();
  impl_->full.pop_front();
  if (got != bytes) throw std::logic_error("hidden states of another size than the step says");
  return impl_->buffers[index];
}

void MpiTransport::send(HiddenBuffer buffer, size_t bytes) {
  impl_->enqueue({impl_->rank + 1, kHiddenTag, {}, impl_->index_of(buffer), bytes});
}

void MpiTransport::recycle(HiddenBuffer buffer) {
  const std::lock_guard lock(impl_->mutex);
  impl_->release_buffer(impl_->index_of(buffer));
}

}  // namespace headrace
