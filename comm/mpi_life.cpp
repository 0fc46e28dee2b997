#include "comm/mpi_life.h"

#include <algorithm>

namespace headrace {

MpiLife::MpiLife(int rank, int size, PeerWatch::Seconds timeout)
    : rank_(rank),
      size_(size),
      period_(std::min(PeerWatch::Seconds(1.0), timeout / 5)),
      watch_(rank, size, timeout, std::chrono::steady_clock::now()),
      peers_(size) {}

bool MpiLife::turn(PeerWatch::Time now) {
  bool moved = hear(now);
  if (now - last_told_ > period_) {
    last_told_ = now;
    tell();
    moved = true;
  }
  watch_.judge(now);
  return moved;
}

// Not in every turn, for each test gives the core away; but nobody waits for who is about to go.
bool MpiLife::hear(PeerWatch::Time now) {
  if (now - last_heard_ < period_ / 10 && watch_.own_state() != PeerState::kGone) return false;
  last_heard_ = now;
  bool moved = false;
  for (int r = 0; r < size_; ++r) {
    if (r != rank_) moved |= hear(r, now);
  }
  return moved;
}

bool MpiLife::hear(int rank, PeerWatch::Time now) {
  Peer& peer = peers_[rank];
  if (peer.receive == MPI_REQUEST_NULL) {
    post(rank);
    return false;
  }
  if (!is_done(peer.receive)) return false;
  watch_.heard(rank, peer.incoming, now);
  if (interrupted_ && peer.incoming.interrupted) *interrupted_ = true;
  post(rank);
  return true;
}

void MpiLife::post(int rank) {
  Peer& peer = peers_[rank];
  check_mpi(MPI_Irecv(&peer.incoming, sizeof peer.incoming, MPI_BYTE, rank, kLifeTag,
                      MPI_COMM_WORLD, &peer.receive),
            "receive");
}

// Skips a rank that has not taken the last one yet.
void MpiLife::tell() {
  const bool interrupted = interrupted_ && *interrupted_;
  const PeerState state = watch_.told_state(std::chrono::steady_clock::now());
  const SignOfLife life{progress_ ? progress_() : 0, state, interrupted};
  for (int r = 0; r < size_; ++r) {
    Peer& peer = peers_[r];
    if (r == rank_ || (peer.send != MPI_REQUEST_NULL && !is_done(peer.send))) continue;
    peer.outgoing = life;
    check_mpi(MPI_Isend(&peer.outgoing, sizeof peer.outgoing, MPI_BYTE, r, kLifeTag, MPI_COMM_WORLD,
                        &peer.send),
              "send");
  }
}

void MpiLife::leave() {
  watch_.set_own_state(PeerState::kGone);
  last_told_ = {};
}

bool MpiLife::is_over() const {
  return watch_.others_are_gone() &&
         std::all_of(peers_.begin(), peers_.end(), [this](const Peer& peer) {
           return &peer == &peers_[rank_] || peer.outgoing.state == PeerState::kGone;
         });
}

void MpiLife::cancel() {
  for (Peer& peer : peers_) {
    if (peer.receive != MPI_REQUEST_NULL) {
      MPI_Cancel(&peer.receive);
      MPI_Request_free(&peer.receive);
    }
    if (peer.send != MPI_REQUEST_NULL) MPI_Wait(&peer.send, MPI_STATUS_IGNORE);
  }
}

}  // namespace headrace
