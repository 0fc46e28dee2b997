#include "comm/peer_watch.h"

#include <algorithm>
#include <cstdio>

#include "comm/error.h"

namespace headrace {

PeerWatch::PeerWatch(int rank, int size, Seconds timeout, Time now)
    : rank_(rank),
      timeout_(timeout),
      peers_(size, Peer{{}, now}),
      hosts_(size),
      last_judged_(now),
      all_waiting_since_(now) {}

std::string PeerWatch::name(int rank) const {
  return "rank " + std::to_string(rank) +
         (hosts_[rank].empty() ? "" : " (host " + hosts_[rank] + ")");
}

void PeerWatch::heard(int rank, const SignOfLife& life, Time now) {
  Peer& peer = peers_[rank];
  if (life.state != PeerState::kWorking || life.progress != peer.last.progress) peer.alive = now;
  peer.last = life;
}

bool PeerWatch::others_are_gone() const {
  return std::all_of(peers_.begin(), peers_.end(), [this](const Peer& peer) {
    return &peer == &peers_[rank_] || peer.last.state == PeerState::kGone;
  });
}

bool PeerWatch::all_wait() const {
  return peers_.size() > 1 && state_ == PeerState::kWaiting &&
         std::all_of(peers_.begin(), peers_.end(), [this](const Peer& peer) {
           return &peer == &peers_[rank_] || peer.last.state == PeerState::kWaiting;
         });
}

void PeerWatch::judge(Time now) {
  if (now - last_judged_ > timeout_ / 2) {
    for (Peer& peer : peers_) peer.alive = now;
  }
  last_judged_ = now;
  for (int r = 0; r < static_cast<int>(peers_.size()); ++r) {
    const Peer& peer = peers_[r];
    if (r == rank_ || peer.last.state == PeerState::kGone || now - peer.alive < timeout_) continue;
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.1f", timeout_.count());
    throw PeerLost(name(r) + " gave no sign of life for " + seconds +
                   " s (--peer-timeout): its process is stopped or stuck, or its node or link is "
                   "down; see to it and run again with --resume");
  }
  if (!all_wait()) all_waiting_since_ = now;
  if (now - all_waiting_since_ > 2 * timeout_) {
    throw PeerLost("all ranks wait for each other: a message was lost; run again with --resume");
  }
}

}  // namespace headrace
