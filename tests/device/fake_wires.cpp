#include "tests/device/fake_wires.h"

#include <cstring>
#include <stdexcept>

#include "comm/error.h"

namespace headrace::test {
namespace {

constexpr int kPoison = 0xFF;

}  // namespace

struct FakeNet::Hop {
  struct Transfer {
    std::byte* memory;
    size_t bytes;
  };
  struct End {
    bool there = false, aborted = false, closing = false;
    std::deque<Transfer> under_way;
    int begun = 0;
  };
  End ends[2];  // as WireEnd
  int done = 0;
  std::string error;
};

class FakeWire final : public DeviceWire {
 public:
  FakeWire(FakeNet& net, std::shared_ptr<FakeNet::Hop> hop, WireEnd end, uint64_t seed,
           const FakeFaults& faults)
      : net_(net),
        hop_(std::move(hop)),
        end_(hop_->ends[static_cast<int>(end)]),
        other_(hop_->ends[1 - static_cast<int>(end)]),
        random_(seed),
        faults_(faults) {
    const std::lock_guard lock(net_.mutex_);
    end_.there = true;
    ++net_.open_ends_;
  }
  ~FakeWire() override { abort(); }

  bool connected() override {
    const std::lock_guard lock(net_.mutex_);
    if (faults_.cannot_connect) throw CommError("fake: no interface");
    if (other_.aborted) throw CommError("fake: the other end has gone");
    connected_ |= !faults_.never_connects && other_.there && by_chance();
    return connected_;
  }

  void send(const std::byte* device, size_t bytes) override {
    begin({const_cast<std::byte*>(device), bytes});
  }
  void receive(std::byte* device, size_t bytes) override {
    std::memset(device, kPoison, bytes);
    begin({device, bytes});
  }
  bool taken() override { return taken_ |= by_chance(); }

  uint64_t completed() override {
    const std::lock_guard lock(net_.mutex_);
    go_on();
    if (!hop_->error.empty() && seen_ < end_.begun) throw PeerLost(hop_->error);
    if (seen_ < hop_->done && by_chance()) ++seen_;
    return static_cast<uint64_t>(seen_);
  }

  bool close() override {
    const std::lock_guard lock(net_.mutex_);
    if (seen_ < end_.begun) throw std::logic_error("closed while transfers are under way");
    if (!end_.closing) {
      end_.closing = true;
      ++net_.closed_ends_;
    }
    return other_.closing;
  }

  void abort() override {
    const std::lock_guard lock(net_.mutex_);
    if (end_.aborted) return;
    end_.aborted = true;
    --net_.open_ends_;
    net_.aborted_transfers_ += end_.begun - seen_;
    end_.under_way.clear();
    if (!end_.closing) hop_->error = "fake: the other end has gone";
  }

 private:
  bool by_chance() { return random_() % 3 == 0; }

  void begin(FakeNet::Hop::Transfer transfer) {
    const std::lock_guard lock(net_.mutex_);
    if (!connected_) throw std::logic_error("a transfer over a wire that is not connected");
    if (!taken_) throw std::logic_error("a transfer begins before the last one was taken");
    taken_ = false;
    end_.under_way.push_back(transfer);
    ++end_.begun;
  }

  void go_on() {
    auto &from = hop_->ends[0].under_way, &to = hop_->ends[1].under_way;
    if (hop_->done >= faults_.fails_after) hop_->error = "fake: remote error";
    if (!hop_->error.empty() || hop_->done >= faults_.stops_after) return;
    if (from.empty() || to.empty() || !by_chance()) return;
    if (from.front().bytes != to.front().bytes) throw std::logic_error("sizes differ");
    std::memcpy(to.front().memory, from.front().memory, to.front().bytes);
    from.pop_front();
    to.pop_front();
    ++hop_->done;
  }

  FakeNet& net_;
  const std::shared_ptr<FakeNet::Hop> hop_;
  FakeNet::Hop::End& end_;
  FakeNet::Hop::End& other_;
  std::mt19937_64 random_;
  const FakeFaults faults_;
  bool connected_ = false, taken_ = true;
  int seen_ = 0;  // transfers, of those that are done
};

Bytes FakeWires::make_id() {
  if (faults_.no_id) throw CommError("fake: no interface");
  Bytes id(sizeof(uint64_t));
  const uint64_t number = random_();
  std::memcpy(id.data(), &number, id.size());
  return id;
}

std::unique_ptr<DeviceWire> FakeWires::connect(int, const Bytes& id, WireEnd end) {
  if (faults_.cannot_start) throw CommError("fake: cannot start");
  std::shared_ptr<FakeNet::Hop> hop;
  {
    const std::lock_guard lock(net_.mutex_);
    auto& known = net_.hops_[id];
    if (!known) known = std::make_shared<FakeNet::Hop>();
    hop = known;
  }
  return std::make_unique<FakeWire>(net_, hop, end, random_(), faults_);
}

FakeHop make_fake_hop(FakeNet& net, uint64_t seed, const FakeFaults& faults) {
  FakeWires wires(net, seed, faults);
  const Bytes id = wires.make_id();
  FakeHop hop{wires.connect(0, id, WireEnd::kSends), wires.connect(0, id, WireEnd::kReceives)};
  while (!hop.sends->connected() || !hop.receives->connected()) {
  }
  return hop;
}

}  // namespace headrace::test
