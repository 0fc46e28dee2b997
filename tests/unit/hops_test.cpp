// Which hops hidden states pass from device to device, and what happens where that fails.
#include "runtime/hops.h"

#include <gtest/gtest.h>

#include <thread>

#include "comm/local_transport.h"
#include "engine/error.h"
#include "runtime/error.h"
#include "tests/device/fake_wires.h"

namespace headrace {
namespace {

using namespace std::chrono_literals;
using test::FakeFaults;
using test::FakeNet;

const HopEnd kCpu;
HopEnd gpu(const std::string& place = "a", const std::string& nccl = "NCCL 2.28.9") {
  return {place, nccl, nccl.empty() ? "there is none" : ""};
}

class ChooseHop : public testing::Test {
 protected:
  Hop choose(const std::string& link, const HopEnd& sends, const HopEnd& receives) {
    return choose_hop(link, *transports_.front(), 0, sends, receives);
  }
  void expect(const std::string& link, const HopEnd& sends, const HopEnd& receives, bool over_wire,
              const std::vector<std::string>& words) {
    const Hop hop = choose(link, sends, receives);
    EXPECT_EQ(hop.over_wire, over_wire) << hop.how;
    EXPECT_FALSE(hop.failed);
    for (const std::string& word : words) {
      EXPECT_NE(hop.how.find(word), std::string::npos) << word << "\n" << hop.how;
    }
  }
  std::string refusal(const HopEnd& sends, const HopEnd& receives) {
    try {
      choose("nccl", sends, receives);
    } catch (const ResourceMissing& e) {
      return e.what();
    }
    return "";
  }

  const std::vector<std::unique_ptr<LocalTransport>> transports_ = LocalTransport::create(2);
};

TEST_F(ChooseHop, TwoGpusOfTheirOwnHaveAWire) {
  for (const char* link : {"auto", "nccl"}) {
    expect(link, gpu("a"), gpu("b"), true, {"over NCCL 2.28.9"});
  }
  expect("mpi", gpu("a"), gpu("b"), false, {"over MPI: --link mpi"});
}

TEST_F(ChooseHop, NothingIsSaidBetweenCpus) {
  for (const char* link : {"auto", "nccl", "mpi"}) {
    const Hop hop = choose(link, kCpu, kCpu);
    EXPECT_FALSE(hop.over_wire);
    EXPECT_EQ(describe(hop, 0), "");
  }
}

TEST_F(ChooseHop, ACpuAtEitherEndTakesMpi) {
  for (const char* link : {"auto", "nccl", "mpi"}) {
    expect(link, kCpu, gpu(), false, {"over MPI", "rank 0 on localhost", "CPU"});
    expect(link, gpu(), kCpu, false, {"over MPI", "rank 1 on localhost", "CPU"});
  }
}

TEST_F(ChooseHop, WithoutNcclOrWithTwoVersionsMpiIsTakenOrItIsRefused) {
  const HopEnd none = gpu("b", ""), other = gpu("b", "NCCL 2.27.3");
  expect("auto", gpu(), none, false, {"over MPI: rank 1 on localhost: there is none"});
  expect("auto", none, gpu(), false, {"over MPI: rank 0 on localhost: there is none"});
  const std::vector<std::string> both = {"rank 0 on localhost has NCCL 2.28.9",
                                         "rank 1 on localhost has NCCL 2.27.3"};
  expect("auto", gpu(), other, false, both);
  EXPECT_NE(refusal(gpu(), none).find("there is none"), std::string::npos);
  EXPECT_NE(refusal(gpu(), other).find(both.back()), std::string::npos);
}

TEST_F(ChooseHop, RanksThatShareAGpuUseNcclOnlyWhereItIsAskedFor) {
  expect("auto", gpu("a"), gpu("a"), false, {"share a GPU"});
  expect("nccl", gpu("a"), gpu("a"), true, {"NCCL 2.28.9"});
}

TEST_F(ChooseHop, RanksMustAgreeOnTheLink) {
  std::thread other([&] { EXPECT_THROW(choose_hops(*transports_[1], "nccl", gpu()), UsageError); });
  EXPECT_THROW(choose_hops(*transports_[0], "auto", gpu()), UsageError);
  other.join();
}

// What each of some ranks gets.
struct Outcome {
  std::vector<Hop> hops;
  bool previous = false, next = false;
  std::string refused;
};

std::vector<Outcome> connect(const std::string& link, const std::vector<HopEnd>& ends,
                             const std::vector<FakeFaults>& faults, FakeNet& net,
                             std::chrono::duration<double> timeout = 20s) {
  const int ranks = static_cast<int>(ends.size());
  const auto transports = LocalTransport::create(ranks, 30s);
  std::vector<Outcome> all(ends.size());
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      test::FakeWires library(net, static_cast<uint64_t>(r), faults[r]);
      try {
        all[r].hops = choose_hops(*transports[r], link, ends[r]);
        const HopWires wires =
            connect_hops(*transports[r], ends[r].gpu.empty() ? nullptr : &library, 0, link, timeout,
                         all[r].hops);
        all[r].previous = wires.previous != nullptr;
        all[r].next = wires.next != nullptr;
      } catch (const ResourceMissing& e) {
        all[r].refused = e.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(net.open_ends(), 0);  // those that were not given are gone, the others at the end
  return all;
}

TEST(ConnectHops, WhatWasChosenIsConnectedAtBothEnds) {
  FakeNet net;
  const auto all = connect("auto", {gpu("a"), gpu("b"), kCpu, gpu("a"), gpu("b"), gpu("c")},
                           std::vector<FakeFaults>(6), net);
  const std::vector<bool> wires = {true, false, false, true, true};
  for (size_t r = 0; r < all.size(); ++r) {
    SCOPED_TRACE(r);
    EXPECT_EQ(all[r].refused, "");
    EXPECT_EQ(all[r].previous, r > 0 && wires[r - 1]);
    EXPECT_EQ(all[r].next, r < wires.size() && wires[r]);
    ASSERT_EQ(all[r].hops.size(), wires.size());
    for (size_t hop = 0; hop < wires.size(); ++hop) {
      EXPECT_EQ(all[r].hops[hop].over_wire, wires[hop]);
      EXPECT_EQ(all[r].hops[hop].how, all[0].hops[hop].how);
    }
  }
  EXPECT_EQ(describe(all[0].hops[3], 3), "stage 4 sends hidden states to stage 5 over NCCL 2.28.9");
}

// Of three ranks, what is wrong with one of them, and which hops that leaves.
struct Fault {
  const char* name;
  int rank;
  FakeFaults faults;
  bool first_hop, second_hop;
  const char* word;
};
const Fault kFaults[] = {
    {"no id at the first", 0, {.no_id = true}, false, true, "rank 0 on localhost: fake: no inter"},
    {"no id in the middle", 1, {.no_id = true}, true, false, "rank 1 on localhost: fake: no inter"},
    {"the last cannot start", 2, {.cannot_start = true}, true, false, "fake: cannot start"},
    {"the middle cannot start", 1, {.cannot_start = true}, false, false, "fake: cannot start"},
    {"the middle cannot connect", 1, {.cannot_connect = true}, false, false, "no interface"},
    {"the last cannot connect", 2, {.cannot_connect = true}, true, false, "no interface"},
    {"the first never connects", 0, {.never_connects = true}, false, true, "--peer-timeout"},
};

TEST(ConnectHops, WhatCannotBeConnectedGoesOverMpiAndSaysWhy) {
  for (const Fault& fault : kFaults) {
    SCOPED_TRACE(fault.name);
    FakeNet net;
    std::vector<FakeFaults> faults(3);
    faults[fault.rank] = fault.faults;
    const auto all = connect("auto", {gpu("a"), gpu("b"), gpu("c")}, faults, net, 300ms);
    for (size_t r = 0; r < 3; ++r) {
      EXPECT_EQ(all[r].previous, r == 1 ? fault.first_hop : r == 2 && fault.second_hop) << r;
      EXPECT_EQ(all[r].next, r == 0 ? fault.first_hop : r == 1 && fault.second_hop) << r;
      for (size_t hop = 0; hop < 2; ++hop) {
        const Hop& h = all[r].hops[hop];
        const bool good = hop == 0 ? fault.first_hop : fault.second_hop;
        EXPECT_EQ(h.over_wire, good);
        EXPECT_EQ(h.failed, !good);
        EXPECT_EQ(h.how.find(fault.word) != std::string::npos, !good) << h.how;
      }
    }
  }
}

TEST(ConnectHops, WhereItMustBeNcclAllRanksSayTheSame) {
  for (const Fault& fault : kFaults) {
    SCOPED_TRACE(fault.name);
    FakeNet net;
    std::vector<FakeFaults> faults(3);
    faults[fault.rank] = fault.faults;
    const auto all = connect("nccl", {gpu("a"), gpu("b"), gpu("c")}, faults, net, 300ms);
    EXPECT_NE(all[0].refused.find(fault.word), std::string::npos) << all[0].refused;
    for (const Outcome& one : all) EXPECT_EQ(one.refused, all[0].refused);
  }
}

}  // namespace
}  // namespace headrace
