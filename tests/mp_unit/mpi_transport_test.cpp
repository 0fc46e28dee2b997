// MpiTransport under a real mpirun, on any number of ranks. MpiTransport initialises MPI itself, so
// the program has its own main: every rank makes one transport and runs all tests on it, in step.
//
//   mpirun -np N mpi_transport_test              the tests
//   mpirun -np N mpi_transport_test --stuck R    rank R makes no progress; the others must find out
//   mpirun -np N mpi_transport_test --stuck-in-transfer R   the same, amid transfers to it
//   mpirun -np N mpi_transport_test --stuck-in-wait R   the same, in a wait that MPI knows nothing
//   of mpirun -np 3 mpi_transport_test --taking 1   rank 1 takes buffers and sends them to rank 2
// A rank that finds out as it should ends the job with exit code 75, one that does not with 1.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "comm/error.h"
#include "comm/mpi_transport.h"

namespace headrace {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr double kTimeout = 3.0;  // seconds
MpiTransport* transport = nullptr;
std::atomic<uint64_t> progress = 0;

// A message whose contents say who sent it and as which one. Counts as work.
Bytes message_of(size_t size, int sender, int number) {
  Bytes bytes(size);
  auto state = static_cast<uint32_t>(sender * 1000003 + number);
  for (std::byte& b : bytes) {
    state = state * 1664525 + 1013904223;
    b = static_cast<std::byte>(state >> 24);
    if (state < 1 << 20) ++progress;  // now and then: making large ones takes long
  }
  return bytes;
}

// Works for a while, as a stage does: the number that others watch grows.
void compute(Clock::duration time) {
  const auto end = Clock::now() + time;
  do {
    ++progress;
    std::this_thread::sleep_for(std::min<Clock::duration>(time, 1ms));
  } while (Clock::now() < end);
}

// All ranks have come here.
void meet() {
  gather(*transport, {});
  broadcast(*transport, {});
}

class MpiTransportTest : public testing::Test {
 protected:
  void SetUp() override { meet(); }

  const int rank_ = transport->rank();
  const int size_ = transport->size();
  const int next_ = (rank_ + 1) % size_;
  const int previous_ = (rank_ + size_ - 1) % size_;
  bool alone() const { return size_ == 1; }
};

TEST_F(MpiTransportTest, EveryRankKnowsTheHosts) {
  EXPECT_GE(rank_, 0);
  EXPECT_LT(rank_, size_);
  for (int r = 0; r < size_; ++r) EXPECT_FALSE(transport->host(r).empty());
  EXPECT_EQ(transport->ranks_on_host(), size_);
}

TEST_F(MpiTransportTest, GatherAndBroadcast) {
  for (int round = 0; round < 200; ++round) {
    const auto all = gather(*transport, message_of(static_cast<size_t>(rank_ * 7), rank_, round));
    if (rank_ == 0) {
      ASSERT_EQ(std::ssize(all), size_);
      for (int r = 0; r < size_; ++r) {
        EXPECT_EQ(all[static_cast<size_t>(r)], message_of(static_cast<size_t>(r * 7), r, round));
      }
    }
    EXPECT_EQ(broadcast(*transport, message_of(100, rank_, round)), message_of(100, 0, round));
  }
}

// Both ways at once, each size several times: small ones overtake no large ones.
TEST_F(MpiTransportTest, MessagesOfAllSizesArriveInOrder) {
  if (alone()) GTEST_SKIP() << "needs 2 ranks";
  const std::vector<size_t> sizes = {0,    1,       7,       4096,     0,        65536, 3,
                                     4097, 1000000, 5000000, 20000000, 20000000, 1,     0};
  for (size_t i = 0; i < sizes.size(); ++i) {
    transport->send(next_, Channel::kStep, message_of(sizes[i], rank_, static_cast<int>(i)));
    transport->send(previous_, Channel::kTokens,
                    message_of(sizes[sizes.size() - 1 - i], rank_, static_cast<int>(i)));
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    const Bytes forward = transport->receive(previous_, Channel::kStep);
    EXPECT_TRUE(forward == message_of(sizes[i], previous_, static_cast<int>(i))) << i;
    const Bytes back = transport->receive(next_, Channel::kTokens);
    EXPECT_TRUE(back == message_of(sizes[sizes.size() - 1 - i], next_, static_cast<int>(i))) << i;
  }
  EXPECT_EQ(transport->try_receive(previous_, Channel::kStep), std::nullopt);
}

TEST_F(MpiTransportTest, ThousandsOfSmallMessages) {
  if (alone()) GTEST_SKIP() << "needs 2 ranks";
  constexpr int kMessages = 5000;
  for (int i = 0; i < kMessages; ++i) {
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) {
        transport->send(r, Channel::kStep, message_of(static_cast<size_t>(i % 60), rank_, i));
      }
    }
  }
  for (int i = 0; i < kMessages; ++i) {
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      ASSERT_EQ(transport->receive(r, Channel::kStep),
                message_of(static_cast<size_t>(i % 60), r, i));
    }
  }
}

TEST_F(MpiTransportTest, PingPong) {
  if (alone()) GTEST_SKIP() << "needs 2 ranks";
  for (int i = 0; i < 300; ++i) {
    const Bytes token = message_of(32, 0, i);
    if (rank_ == 0) {
      transport->send(next_, Channel::kTokens, token);
      EXPECT_EQ(transport->receive(previous_, Channel::kTokens), token);
    } else {
      transport->send(next_, Channel::kTokens, transport->receive(previous_, Channel::kTokens));
    }
  }
}

TEST_F(MpiTransportTest, TryReceiveDoesNotWait) {
  if (alone()) GTEST_SKIP() << "needs 2 ranks";
  const auto start = Clock::now();
  EXPECT_EQ(transport->try_receive(next_, Channel::kTokens), std::nullopt);
  EXPECT_LT(Clock::now() - start, 1s);
  meet();
  if (rank_ == 0) {
    for (int r = 1; r < size_; ++r) transport->send(r, Channel::kTokens, message_of(10, 0, 1));
  } else {
    std::optional<Bytes> got;
    while (!got) {
      got = transport->try_receive(0, Channel::kTokens);
      compute(1ms);
    }
    EXPECT_EQ(*got, message_of(10, 0, 1));
  }
}

// A pipeline of stages that compute for different times while buffers of changing sizes go round:
// the first runs ahead until it has no buffer left, and nobody may wait for ever.
TEST_F(MpiTransportTest, HiddenStatesFlowWhileStagesCompute) {
  constexpr size_t kMost = 3 << 20;
  // The link keeps these until the end of the run.
  static std::vector<Bytes> memory(kLinkBuffers, Bytes(kMost));
  static bool lent = false;
  if (!std::exchange(lent, true)) {
    transport->set_buffers(std::vector<ActivationLink::HiddenBuffer>(memory.begin(), memory.end()),
                           rank_ > 0);
  }
  std::mt19937 random(static_cast<unsigned>(rank_));
  constexpr int kSteps = 150;
  const bool last = rank_ + 1 == size_;
  for (int step = 0; step < kSteps; ++step) {
    const size_t bytes = step % 5 == 0 ? kMost : static_cast<size_t>(step * 977 % 60000 + 1);
    const auto buffer = rank_ == 0 ? transport->take() : transport->receive(bytes);
    if (rank_ == 0) {
      const Bytes contents = message_of(bytes, 0, step);
      std::memcpy(buffer.data(), contents.data(), bytes);
    }
    if (random() % 3 == 0) compute(std::chrono::microseconds(random() % 6000));
    for (std::byte& b : buffer.first(bytes)) b ^= std::byte{0x11};
    if (!last) {
      transport->send(buffer, bytes);
      continue;
    }
    // Every stage has turned the same bits over.
    Bytes expected = message_of(bytes, 0, step);
    if (size_ % 2) {
      for (std::byte& b : expected) b ^= std::byte{0x11};
    }
    ASSERT_EQ(std::memcmp(buffer.data(), expected.data(), bytes), 0) << "step " << step;
    transport->recycle(buffer);
  }
}

// Waiting for input, for longer than the timeout: nobody is lost.
TEST_F(MpiTransportTest, AnIdleRankIsNotLost) {
  if (alone()) GTEST_SKIP() << "needs 2 ranks";
  if (rank_ == 0) {
    const Communicator::Idle waiting(*transport);
    std::this_thread::sleep_for(std::chrono::duration<double>(1.6 * kTimeout));
  }
  EXPECT_NO_THROW(meet());
}

// Waiting in a way that MPI knows nothing of, for longer than the timeout: nobody is lost.
TEST_F(MpiTransportTest, ARankThatWaitsOtherwiseIsNotLost) {
  if (alone()) GTEST_SKIP() << "needs 2 ranks";
  if (rank_ == 0) {
    Communicator::Waiting waiting(*transport);
    const auto end = Clock::now() + std::chrono::duration<double>(1.6 * kTimeout);
    while (Clock::now() < end) {
      EXPECT_NO_THROW(waiting.check());
      std::this_thread::sleep_for(1ms);
    }
  }
  EXPECT_NO_THROW(meet());
}

// Computing for longer than the timeout: the others wait as long as there is progress.
TEST_F(MpiTransportTest, ARankThatMakesProgressIsNotLost) {
  if (alone()) GTEST_SKIP() << "needs 2 ranks";
  if (rank_ == size_ - 1) compute(std::chrono::milliseconds(static_cast<int>(1600 * kTimeout)));
  EXPECT_NO_THROW(meet());
}

// Hidden states come to this rank in another way, and go on by MPI: no receive gets in the way.
int pass_on(int taker) {
  constexpr size_t kBytes = 100000;
  static std::vector<Bytes> memory(kLinkBuffers, Bytes(kBytes));
  const int rank = transport->rank();
  transport->set_buffers(std::vector<ActivationLink::HiddenBuffer>(memory.begin(), memory.end()),
                         rank > taker);
  int wrong = 0;
  for (int step = 0; step < 50 && rank >= taker; ++step) {
    const Bytes expected = message_of(kBytes, taker, step);
    const auto buffer = rank == taker ? transport->take() : transport->receive(kBytes);
    if (rank == taker) {
      std::memcpy(buffer.data(), expected.data(), kBytes);
      transport->send(buffer, kBytes);
    } else {
      wrong += std::memcmp(buffer.data(), expected.data(), kBytes) != 0;
      transport->recycle(buffer);
    }
  }
  transport->finish();
  return wrong == 0 ? 0 : 1;
}

// Waits for something that the stuck rank will never send, and judges how the wait ends.
int find_out(int stuck, const std::string& mode) {
  if (transport->rank() == stuck) {
    std::this_thread::sleep_for(60s);  // it is ended long before
    return 1;
  }
  if (mode == "--stuck-in-transfer") {
    // More than goes through without the other side's help.
    for (int i = 0; i < 4; ++i) transport->send(stuck, Channel::kStep, Bytes(20 << 20));
  }
  const auto start = Clock::now();
  try {
    if (mode == "--stuck-in-wait") {
      for (Communicator::Waiting waiting(*transport);; std::this_thread::sleep_for(1ms)) {
        waiting.check();
      }
    }
    transport->receive(stuck, Channel::kTokens);
  } catch (const PeerLost& e) {
    const double waited = std::chrono::duration<double>(Clock::now() - start).count();
    const std::string who =
        "rank " + std::to_string(stuck) + " (host " + transport->host(stuck) + ")";
    const bool named = std::string(e.what()).find(who) != std::string::npos;
    // Ranks do not start to wait at the same moment.
    const bool in_time = waited > 0.5 * kTimeout && waited < 2 * kTimeout;
    std::printf("rank %d after %.2f s: %s\n", transport->rank(), waited, e.what());
    return named && in_time ? 75 : 1;
  }
  return 1;
}

}  // namespace
}  // namespace headrace

int main(int argc, char** argv) {
  using namespace headrace;
  testing::InitGoogleTest(&argc, argv);
  MpiTransport mine(kTimeout);
  transport = &mine;
  if (mine.rank() != 0) {  // failures are printed by every rank, the rest by one
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    struct Failures : testing::EmptyTestEventListener {
      void OnTestPartResult(const testing::TestPartResult& part) override {
        if (part.failed())
          std::printf("rank %d: %s:%d: %s\n", transport->rank(), part.file_name(),
                      part.line_number(), part.message());
      }
    };
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Failures);
  }
  mine.watch_progress([] { return progress.load(); });
  meet();
  const std::string mode = argc > 2 ? argv[1] : "";
  int code = 1;
  try {
    if (mode.empty()) {
      code = RUN_ALL_TESTS();
      if (code == 0 && mine.rank() == mine.size() - 1) compute(2s);  // the others finish before
      if (code == 0) mine.finish();
    } else if (mode == "--taking") {
      code = pass_on(std::stoi(argv[2]));
    } else {
      code = find_out(std::stoi(argv[2]), mode);
    }
  } catch (const std::exception& e) {
    std::printf("rank %d: %s\n", mine.rank(), e.what());
  }
  std::fflush(stdout);
  if (code != 0) mine.abort(code);
  return code;
}
