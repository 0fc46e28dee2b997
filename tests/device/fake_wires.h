// Wires between threads of one process, whose "devices" are the host. Transfers are done in order
// and as late as can be: who does not wait for what it needs reads poison, or sends what it wrote
// later.
#pragma once

#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>

#include "comm/device_wire.h"

namespace headrace::test {

// What all wires have in common.
class FakeNet {
 public:
  struct Hop;

  // What went wrong with the wires that were there: transfers that an end still had when it was
  // aborted, and ends that were closed.
  int aborted_transfers() const { return aborted_transfers_; }
  int closed_ends() const { return closed_ends_; }
  int open_ends() const { return open_ends_; }

 private:
  friend class FakeWires;
  friend class FakeWire;

  std::mutex mutex_;
  std::map<Bytes, std::shared_ptr<Hop>> hops_;
  int aborted_transfers_ = 0, closed_ends_ = 0, open_ends_ = 0;
};

// What a rank's library does. Faults of one end are seen by the other as NCCL's are.
struct FakeFaults {
  static constexpr int kNever = std::numeric_limits<int>::max();
  std::string version = "fake 1.0";
  bool no_id = false;           // make_id() throws
  bool cannot_start = false;    // connect() throws
  bool cannot_connect = false;  // connected() throws
  bool never_connects = false;
  int fails_after = kNever;  // transfers, then they are errors
  int stops_after = kNever;  // transfers, then nothing goes on
};

class FakeWires final : public DeviceWires {
 public:
  // `net` must outlive it.
  FakeWires(FakeNet& net, uint64_t seed, FakeFaults faults = {})
      : net_(net), random_(seed), faults_(std::move(faults)) {}

  std::string version() override { return faults_.version; }
  Bytes make_id() override;
  std::unique_ptr<DeviceWire> connect(int device, const Bytes& id, WireEnd end) override;

 private:
  FakeNet& net_;
  std::mt19937_64 random_;
  const FakeFaults faults_;
};

// Both ends of a hop, connected; `sends` and `receives` say what goes wrong there.
struct FakeHop {
  std::unique_ptr<DeviceWire> sends, receives;
};
FakeHop make_fake_hop(FakeNet& net, uint64_t seed, const FakeFaults& faults = {});

}  // namespace headrace::test
