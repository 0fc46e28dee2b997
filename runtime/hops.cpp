#include "runtime/hops.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "comm/backoff.h"
#include "comm/error.h"
#include "engine/error.h"
#include "runtime/error.h"
#include "runtime/json_bytes.h"

namespace headrace {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(HopEnd, gpu, nccl, why_no_nccl)

namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

std::string name(const Communicator& ranks, int rank) {
  return "rank " + std::to_string(rank) + " on " + ranks.host(rank);
}

[[noreturn]] void refuse(int from, const std::string& why) {
  throw ResourceMissing("stage " + std::to_string(from + 1) +
                        " cannot send hidden states to stage " + std::to_string(from + 2) +
                        " over NCCL: " + why + "; see to it, or use --link auto");
}

// One of a rank's hops while it is connected. Each end tells the other one once how it went for
// it, and both must be fine.
class Connecting {
 public:
  Connecting(Communicator& ranks, int peer, WireEnd end, DeviceWires& library, int device)
      : ranks_(ranks), peer_(peer), end_(end), library_(library), device_(device) {}

  // The end that sends makes the hop's id.
  void begin() {
    attempt([this] {
      if (end_ == WireEnd::kSends) ranks_.send(peer_, Channel::kSetup, id_ = library_.make_id());
    });
    // An empty one says that there is none.
    if (end_ == WireEnd::kSends && id_.empty()) ranks_.send(peer_, Channel::kSetup, {});
    if (end_ == WireEnd::kReceives) id_ = ranks_.receive(peer_, Channel::kSetup);
    if (!id_.empty()) attempt([this] { wire_ = library_.connect(device_, id_, end_); });
  }

  // True when both ends have told.
  bool look(bool in_time) {
    if (!told_ && failure_.empty() && wire_) {
      attempt([this] { connected_ = wire_->connected(); });
      if (!connected_ && failure_.empty() && !in_time) {
        failure_ = name(ranks_, ranks_.rank()) + ": it took longer than --peer-timeout";
      }
    }
    if (!theirs_) theirs_ = ranks_.try_receive(peer_, Channel::kSetup);
    const bool over = theirs_ && !theirs_->empty();
    if (!told_ && (connected_ || over || !failure_.empty() || !wire_)) {
      told_ = true;
      if (!connected_ && failure_.empty()) failure_ = over ? their_failure() : kOther;
      ranks_.send(peer_, Channel::kSetup, text_bytes(failure_));
    }
    return told_ && theirs_;
  }

  // Why not, by what both ends say; empty where it is connected.
  std::string failure() const {
    const std::string theirs = their_failure();
    if (failure_.empty() || failure_ == theirs) return theirs;
    return theirs.empty() || theirs == kOther ? failure_ : failure_ + "; " + theirs;
  }
  std::unique_ptr<DeviceWire> wire() { return failure().empty() ? std::move(wire_) : nullptr; }

 private:
  static constexpr char kOther[] = "the other end has failed";

  std::string their_failure() const {
    if (!theirs_) return "";
    return {reinterpret_cast<const char*>(theirs_->data()), theirs_->size()};
  }

  template <typename Call>
  void attempt(Call call) {
    try {
      call();
    } catch (const CommError& e) {
      failure_ = name(ranks_, ranks_.rank()) + ": " + e.what();
      wire_.reset();
    }
  }

  Communicator& ranks_;
  const int peer_;
  const WireEnd end_;
  DeviceWires& library_;
  const int device_;
  Bytes id_;
  std::unique_ptr<DeviceWire> wire_;
  bool connected_ = false, told_ = false;
  std::string failure_;          // of this end
  std::optional<Bytes> theirs_;  // what the other end has told
};

}  // namespace

Hop choose_hop(const std::string& link, const Communicator& ranks, int from, const HopEnd& sends,
               const HopEnd& receives) {
  if (sends.gpu.empty() && receives.gpu.empty()) return {};
  const auto by_mpi = [](const std::string& why) { return Hop{false, "over MPI: " + why}; };
  if (sends.gpu.empty()) return by_mpi(name(ranks, from) + " computes on its CPU");
  if (receives.gpu.empty()) return by_mpi(name(ranks, from + 1) + " computes on its CPU");
  if (link == "mpi") return by_mpi("--link mpi");
  std::string why;
  if (sends.nccl.empty()) {
    why = name(ranks, from) + ": " + sends.why_no_nccl;
  } else if (receives.nccl.empty()) {
    why = name(ranks, from + 1) + ": " + receives.why_no_nccl;
  } else if (sends.nccl != receives.nccl) {
    why = name(ranks, from) + " has " + sends.nccl + ", " + name(ranks, from + 1) + " has " +
          receives.nccl;
  }
  if (!why.empty() && link == "nccl") refuse(from, why);
  if (why.empty() && link == "auto" && sends.gpu == receives.gpu) {
    why = "the ranks share a GPU, where NCCL is slow";
  }
  return why.empty() ? Hop{true, "over " + sends.nccl} : by_mpi(why);
}

std::vector<Hop> choose_hops(Communicator& ranks, const std::string& link, const HopEnd& mine) {
  const std::vector<json> all = share_with_all(ranks, {{"link", link}, {"end", mine}});
  std::vector<HopEnd> ends;
  for (const json& one : all) {
    ends.push_back(one.at("end"));
    const std::string theirs = one.at("link"), first = all.at(0).at("link");
    if (theirs == first) continue;
    throw UsageError("the ranks do not agree: --link is " + first + " on rank 0 and " + theirs +
                     " on rank " + std::to_string(ends.size() - 1) + "; give all the same");
  }
  std::vector<Hop> hops;
  for (int r = 0; r + 1 < ranks.size(); ++r) {
    hops.push_back(choose_hop(link, ranks, r, ends.at(r), ends.at(r + 1)));
  }
  return hops;
}

HopWires connect_hops(Communicator& ranks, DeviceWires* library, int device,
                      const std::string& link, std::chrono::duration<double> timeout,
                      std::vector<Hop>& hops) {
  if (std::none_of(hops.begin(), hops.end(), [](const Hop& hop) { return hop.over_wire; })) {
    return {};
  }
  gather(ranks, {});  // the time begins when all are here
  broadcast(ranks, {});
  const int rank = ranks.rank();
  std::optional<Connecting> previous, next;
  if (rank + 1 < ranks.size() && hops[rank].over_wire) {
    next.emplace(ranks, rank + 1, WireEnd::kSends, *library, device).begin();
  }
  if (rank > 0 && hops[rank - 1].over_wire) {
    previous.emplace(ranks, rank - 1, WireEnd::kReceives, *library, device).begin();
  }
  {
    Communicator::Waiting waiting(ranks);
    Backoff backoff(Clock::now());
    const auto begin = Clock::now();
    for (;;) {
      const bool in_time = Clock::now() - begin < timeout;
      const bool next_done = !next || next->look(in_time);
      const bool previous_done = !previous || previous->look(in_time);
      if (next_done && previous_done) break;
      waiting.check();
      std::this_thread::sleep_for(backoff.pause(Clock::now(), 1.0 / 64));
    }
  }

  const std::vector<json> failures = share_with_all(ranks, next ? next->failure() : "");
  for (int r = 0; r + 1 < ranks.size(); ++r) {
    const std::string why = failures.at(r);
    if (why.empty()) continue;
    if (link == "nccl") refuse(r, why);
    hops[r] = {false, "over MPI: " + why, true};
  }
  HopWires wires;
  if (previous) wires.previous = previous->wire();
  if (next) wires.next = next->wire();
  return wires;
}

std::string describe(const Hop& hop, int from) {
  if (hop.how.empty()) return "";
  return "stage " + std::to_string(from + 1) + " sends hidden states to stage " +
         std::to_string(from + 2) + " " + hop.how;
}

}  // namespace headrace
