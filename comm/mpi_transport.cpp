#include "comm/mpi_transport.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "comm/backoff.h"
#include "comm/deadline.h"
#include "comm/error.h"
#include "comm/launcher.h"
#include "comm/mpi_calls.h"
#include "comm/mpi_life.h"
#include "comm/mpi_transfers.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = PeerWatch::Seconds;

}  // namespace

// The progress thread and what it shares with the caller's.
struct MpiTransport::Impl {
  Impl(int own_rank, int ranks, Seconds peer_timeout, MPI_Comm messages)
      : rank(own_rank),
        size(ranks),
        life(own_rank, ranks, peer_timeout),
        transfers(own_rank, messages) {
    thread = std::thread([this] { run(); });
  }
  ~Impl() { join(); }  // also where the transport's constructor throws

  // ---- the progress thread ----

  void run() {
    std::unique_lock lock(mutex);
    while (!stop) {
      bool moved = false;
      try {
        moved = turn();
      } catch (const std::exception& e) {
        failure = e.what();
        arrived.notify_all();
        return;
      }
      const auto now = Clock::now();
      if (moved) {
        arrived.notify_all();
        backoff.restart(now);
      }
      const auto pause = backoff.pause(now, lateness());
      if (pause > Clock::duration::zero()) {
        work.wait_for(lock, pause);
      } else {
        lock.unlock();
        std::this_thread::yield();
        lock.lock();
      }
    }
  }

  // That may be added to a wait. Hidden states come in many parts over a network, each of which is
  // seen late.
  double lateness() const {
    if (transfers.under_way()) return 0;
    return awaits_hidden ? 1.0 / 320 : 1.0 / 64;
  }

  // Drives everything on once; true if something moved.
  bool turn() {
    const bool moved = transfers.turn();
    if (moved) life.watch().moved(Clock::now());
    if (launcher.is_gone()) {
      throw PeerLost("the launcher (mpirun or srun) of this rank is gone; run again with --resume");
    }
    if (life.turn(Clock::now())) arrived.notify_all();
    return moved;
  }

  // ---- the caller's side ----

  // Returns the state before.
  PeerState begin_to_wait() {
    const PeerState before = life.watch().own_state();
    if (before != PeerState::kGone) life.watch().set_own_state(PeerState::kWaiting);
    return before;
  }

  // Gives the lock, with `ready()` true. Throws PeerLost.
  template <typename Ready>
  std::unique_lock<std::mutex> wait(Ready ready) {
    std::unique_lock lock(mutex);
    const PeerState before = begin_to_wait();
    if (!ready()) {  // the progress thread may have become slow
      backoff.restart(Clock::now());
      work.notify_one();
    }
    arrived.wait(lock, [&] { return !failure.empty() || ready(); });
    life.watch().set_own_state(before);
    if (!ready()) throw PeerLost(failure);
    return lock;
  }

  // Queues what `queue()` sends and lets it start at once.
  template <typename Queue>
  void send(Queue queue) {
    const std::lock_guard lock(mutex);
    if (!failure.empty()) throw PeerLost(failure);
    queue();
    work.notify_one();
  }

  void join() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
      work.notify_one();
    }
    if (thread.joinable()) thread.join();
  }

  const int rank, size;
  Launcher launcher;

  std::mutex mutex;  // guards everything below and every MPI call
  std::condition_variable work, arrived;
  MpiLife life;
  MpiTransfers transfers;
  Backoff backoff{Clock::now()};
  PeerState before_waiting = PeerState::kIdle;  // for what MPI does not know
  bool awaits_hidden = false;
  std::string failure;  // why every wait must end
  bool stop = false;
  bool finished = false;
  std::thread thread;
};

namespace {

// For the calls of MPI that wait for other ranks and cannot be given up.
void guard(std::optional<Deadline>& deadline, Seconds timeout, const MpiTransport::Stuck& stuck,
           std::string why) {
  if (stuck) deadline.emplace(timeout, [&stuck, why = std::move(why)] { stuck(why); });
}

void initialise() {
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) {
    throw CommError(
        "MPI could not be initialised; check the mpirun or srun line (srun needs --mpi=pmix)");
  }
  if (provided < MPI_THREAD_SERIALIZED) {
    throw CommError(
        "this MPI has no MPI_THREAD_SERIALIZED; use an Open MPI built with thread support");
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
}

Bytes bytes_of(const std::string& text) {
  const auto* const first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}

// The host of each rank, on every rank.
std::vector<std::string> exchange_hosts(Communicator& communicator) {
  std::string names;
  for (const Bytes& host : gather(communicator, bytes_of(own_host()))) {
    names.append(reinterpret_cast<const char*>(host.data()), host.size());
    names += '\0';
  }
  const Bytes all = broadcast(communicator, bytes_of(names));
  std::vector<std::string> hosts;
  const char* next = reinterpret_cast<const char*>(all.data());
  for (int r = 0; r < communicator.size(); ++r) {
    hosts.emplace_back(next);
    next += hosts.back().size() + 1;
  }
  return hosts;
}

}  // namespace

MpiTransport::MpiTransport(double peer_timeout_s, Stuck stuck)
    : timeout_(peer_timeout_s), stuck_(std::move(stuck)) {
  MPI_Comm messages = MPI_COMM_NULL;
  {
    std::optional<Deadline> deadline;
    guard(deadline, timeout_, stuck_,
          "MPI did not start within --peer-timeout: a rank did not come up, is stopped, or its "
          "node cannot be reached; see to it and run again");
    initialise();
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &messages), "start");
  }
  int rank = 0, size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  impl_ = std::make_unique<Impl>(rank, size, timeout_, messages);
  std::vector<std::string> hosts = exchange_hosts(*this);
  impl_->launcher.note_files();
  const std::lock_guard lock(impl_->mutex);
  impl_->life.watch().name_hosts(std::move(hosts));
}

MpiTransport::~MpiTransport() {
  impl_->join();
  if (!impl_->finished) return;
  std::optional<Deadline> deadline;
  guard(deadline, timeout_, stuck_,
        "the results are complete, but MPI did not end within --peer-timeout: a rank that "
        "was done is stopped or gone; --resume will find nothing left to do");
  MPI_Finalize();
}

void MpiTransport::share(std::atomic<bool>& interrupted) {
  const std::lock_guard lock(impl_->mutex);
  impl_->life.share(interrupted);
}

int MpiTransport::rank() const { return impl_->rank; }
int MpiTransport::size() const { return impl_->size; }
const std::string& MpiTransport::host(int rank) const { return impl_->life.watch().host(rank); }

// "Open MPI v4.1.4, package: ...": what stands before the comma.
std::string MpiTransport::library() const {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  check_mpi(MPI_Get_library_version(text, &length), "MPI_Get_library_version");
  const std::string all(text, static_cast<size_t>(length));
  return all.substr(0, all.find_first_of(",\n"));
}

void MpiTransport::send(int to, Channel channel, Bytes message) {
  impl_->send([&] { impl_->transfers.send(to, channel, std::move(message)); });
}

Bytes MpiTransport::receive(int from, Channel channel) {
  const auto lock = impl_->wait([&] { return impl_->transfers.has(from, channel); });
  return *impl_->transfers.take(from, channel);
}

std::optional<Bytes> MpiTransport::try_receive(int from, Channel channel) {
  const std::lock_guard lock(impl_->mutex);
  std::optional<Bytes> message = impl_->transfers.take(from, channel);
  if (!message && !impl_->failure.empty()) throw PeerLost(impl_->failure);
  return message;
}

void MpiTransport::watch_progress(std::function<uint64_t()> progress) {
  const std::lock_guard lock(impl_->mutex);
  impl_->life.watch_progress(std::move(progress));
  impl_->life.watch().set_own_state(PeerState::kWorking);
}

void MpiTransport::observe(Observer observer) {
  const std::lock_guard lock(impl_->mutex);
  impl_->transfers.observe(std::move(observer));
}

void MpiTransport::note(const Transfer& transfer) {
  const std::lock_guard lock(impl_->mutex);
  impl_->transfers.note(transfer);
}

void MpiTransport::set_idle(std::chrono::minutes at_most) {
  const std::lock_guard lock(impl_->mutex);
  impl_->life.watch().set_idle(at_most, Clock::now());
}

void MpiTransport::set_busy() {
  const std::lock_guard lock(impl_->mutex);
  impl_->life.watch().set_own_state(PeerState::kWorking);
}

void MpiTransport::set_waiting(bool waiting) {
  const std::lock_guard lock(impl_->mutex);
  if (waiting) {
    impl_->before_waiting = impl_->begin_to_wait();
  } else {
    impl_->life.watch().set_own_state(impl_->before_waiting);
    impl_->life.watch().moved(Clock::now());
  }
}

void MpiTransport::check_peers() {
  const std::lock_guard lock(impl_->mutex);
  if (!impl_->failure.empty()) throw PeerLost(impl_->failure);
}

void MpiTransport::finish() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->life.leave();
    impl_->work.notify_one();
  }
  // Everybody has said so, and everybody has taken what this rank sent.
  impl_->wait([this] { return impl_->life.is_over() && impl_->transfers.all_sent(); });
  impl_->join();
  impl_->life.cancel();
  impl_->transfers.cancel();
  impl_->finished = true;
}

void MpiTransport::halt() { impl_->join(); }

void MpiTransport::abort(int exit_code) {
  impl_->join();
  if (impl_->launcher.is_gone()) _exit(exit_code);  // nobody is left to ask
  MPI_Abort(MPI_COMM_WORLD, exit_code);
}

void MpiTransport::set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives) {
  const std::lock_guard lock(impl_->mutex);
  impl_->transfers.set_buffers(buffers, receives);
}

MpiTransport::HiddenBuffer MpiTransport::take() {
  const auto lock = impl_->wait([this] { return impl_->transfers.has_free(); });
  return impl_->transfers.take_free();
}

MpiTransport::HiddenBuffer MpiTransport::receive(size_t bytes) {
  const auto lock = impl_->wait([this] {
    impl_->awaits_hidden = !impl_->transfers.has_full();
    return !impl_->awaits_hidden;
  });
  return impl_->transfers.take_full(bytes);
}

void MpiTransport::send(HiddenBuffer buffer, size_t bytes) {
  impl_->send([&] { impl_->transfers.send(buffer, bytes); });
}

void MpiTransport::recycle(HiddenBuffer buffer) {
  const std::lock_guard lock(impl_->mutex);
  impl_->transfers.recycle(buffer);
}

}  // namespace headrace
