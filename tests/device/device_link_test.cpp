// Hidden states from stage to stage with a wire on either side, on both or on none.
#include "comm/device_link.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <thread>

#include "comm/error.h"
#include "comm/local_transport.h"
#include "tests/device/fake_wires.h"

namespace headrace {
namespace {

using namespace std::chrono_literals;
using test::FakeFaults;
using test::FakeNet;

constexpr size_t kBytes = 4096;
constexpr int kSteps = 300;

// The memory of one rank's buffers, poisoned.
struct Memory {
  std::vector<Bytes> host{kLinkBuffers, Bytes(kBytes, std::byte{0xFF})}, device = host;

  std::vector<ActivationLink::HiddenBuffer> buffers() { return {host.begin(), host.end()}; }
  std::vector<std::byte*> pieces() {
    std::vector<std::byte*> all;
    for (Bytes& piece : device) all.push_back(piece.data());
    return all;
  }
};

// One stage of many, that has as little to do as can be.
void run_stage_of_bytes(ActivationLink& link, int rank, int ranks) {
  for (int step = 0; step < kSteps; ++step) {
    const size_t bytes = static_cast<size_t>(step * 131 % 4000 + 1);
    const auto buffer = rank == 0 ? link.take() : link.receive(bytes);
    const auto [memory, arrives, leaves] = link.on_device(buffer);
    std::byte* const from = arrives ? memory : buffer.data();
    std::byte* const to = leaves ? memory : buffer.data();
    const auto expected = static_cast<std::byte>(step + rank);
    if (rank > 0) {
      ASSERT_EQ(std::count(from, from + bytes, expected), bytes) << step;
    }
    std::fill_n(from, bytes, std::byte{0xFF});
    std::fill_n(to, bytes, static_cast<std::byte>(step + rank + 1));
    if (rank + 1 < ranks) {
      link.send(buffer, bytes);
    } else {
      link.recycle(buffer);
    }
  }
}

void on_all(int ranks, const std::function<void(int)>& run) {
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) threads.emplace_back([&, r] { run(r); });
  for (std::thread& thread : threads) thread.join();
}

TEST(DeviceLink, PassesHiddenStatesWhicheverHopsAreWires) {
  constexpr int kRanks = 4;
  for (unsigned wires = 1; wires < 8; ++wires) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      SCOPED_TRACE(testing::Message() << "wires " << wires << ", seed " << seed);
      FakeNet net;
      const auto transports = LocalTransport::create(kRanks, 20s);
      std::vector<test::FakeHop> hops(kRanks + 1);  // to each rank
      for (int r = 1; r < kRanks; ++r) {
        if (wires >> (r - 1) & 1) hops[r] = test::make_fake_hop(net, 10 * seed + r);
      }
      on_all(kRanks, [&](int rank) {
        Memory memory;
        LocalTransport& transport = *transports[rank];
        if (!hops[rank].receives && !hops[rank + 1].sends) {
          transport.set_buffers(memory.buffers(), rank > 0);
          return run_stage_of_bytes(transport, rank, kRanks);
        }
        DeviceLink link(transport, transport, std::move(hops[rank].receives),
                        std::move(hops[rank + 1].sends), memory.pieces());
        link.set_buffers(memory.buffers(), rank > 0);
        run_stage_of_bytes(link, rank, kRanks);
        link.close();
      });
      EXPECT_EQ(net.open_ends(), 0);
      EXPECT_EQ(net.closed_ends(), 2 * std::popcount(wires));
      EXPECT_EQ(net.aborted_transfers(), 0);
    }
  }
}

// A link of rank 0 to rank 1, or the other end.
class OneHop : public testing::Test {
 protected:
  void connect(const FakeFaults& faults, std::chrono::milliseconds timeout) {
    transports_ = LocalTransport::create(2, timeout);
    hop_ = test::make_fake_hop(net_, 1, faults);
    sends_.emplace(*transports_[0], *transports_[0], nullptr, std::move(hop_.sends),
                   memory_[0].pieces());
    receives_.emplace(*transports_[1], *transports_[1], std::move(hop_.receives), nullptr,
                      memory_[1].pieces());
    sends_->set_buffers(memory_[0].buffers(), false);
    receives_->set_buffers(memory_[1].buffers(), true);
  }

  FakeNet net_;
  Memory memory_[2];
  std::vector<std::unique_ptr<LocalTransport>> transports_;
  test::FakeHop hop_;
  std::optional<DeviceLink> sends_, receives_;
};

void expect_lost(const std::function<void()>& wait, const std::vector<std::string>& words) {
  try {
    wait();
    FAIL() << "nothing was thrown";
  } catch (const PeerLost& e) {
    for (const std::string& word : words) {
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << word << "\n" << e.what();
    }
  }
}

TEST_F(OneHop, ABufferIsFreeWhenItsTransferIsCompletedAndNotBefore) {
  connect({.stops_after = 0}, 200ms);
  std::vector<std::byte*> seen;
  for (int i = 0; i < kLinkBuffers; ++i) {
    const auto buffer = sends_->take();
    EXPECT_EQ(std::count(seen.begin(), seen.end(), buffer.data()), 0);
    seen.push_back(buffer.data());
    sends_->send(buffer, 10);  // returns at once
  }
  const auto begin = std::chrono::steady_clock::now();
  expect_lost([&] { sends_->take(); }, {});
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 200ms);
}

TEST_F(OneHop, AReceiveEndsAtItsDeadlineAndItsTransferIsAborted) {
  connect({.stops_after = 0}, 200ms);
  sends_->send(sends_->take(), 10);
  expect_lost([&] { receives_->receive(10); }, {"localhost"});
  EXPECT_EQ(net_.aborted_transfers(), 0);
  receives_.reset();
  EXPECT_EQ(net_.aborted_transfers(), 1);
  sends_.reset();
  EXPECT_EQ(net_.aborted_transfers(), 2);
  EXPECT_EQ(net_.open_ends(), 0);
  EXPECT_EQ(net_.closed_ends(), 0);
}

TEST_F(OneHop, AnErrorOfTheLibraryNamesTheOtherEnd) {
  connect({.fails_after = 5}, 20s);
  std::thread sender([&] {
    expect_lost(
        [&] {
          for (int i = 0; i < 20; ++i) sends_->send(sends_->take(), 10);
        },
        {"hidden states to rank 1 (host localhost)", "fake: remote error"});
  });
  expect_lost(
      [&] {
        for (int i = 0; i < 20; ++i) receives_->recycle(receives_->receive(10));
      },
      {"hidden states from rank 0 (host localhost)", "fake: remote error"});
  sender.join();
}

TEST_F(OneHop, AnEndThatGoesEndsTheOthersWait) {
  connect({}, 20s);
  std::thread receiver([&] {
    expect_lost([&] { receives_->receive(10); }, {"rank 0", "the other end has gone"});
  });
  std::this_thread::sleep_for(50ms);
  sends_.reset();
  receiver.join();
}

TEST_F(OneHop, IsClosedTogetherAfterWhatIsUnderWay) {
  connect({}, 20s);
  std::thread sender([&] {
    for (int i = 0; i < 2; ++i) sends_->send(sends_->take(), 10);
    sends_->close();
    sends_.reset();
  });
  for (int i = 0; i < 2; ++i) receives_->recycle(receives_->receive(10));
  receives_->close();
  receives_.reset();
  sender.join();
  EXPECT_EQ(net_.closed_ends(), 2);
  EXPECT_EQ(net_.aborted_transfers(), 0);
}

}  // namespace
}  // namespace headrace
