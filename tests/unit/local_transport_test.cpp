#include "comm/local_transport.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <thread>

#include "comm/error.h"

namespace headrace {
namespace {

using Transports = std::vector<std::unique_ptr<LocalTransport>>;

Bytes bytes_of(size_t size, int fill) { return Bytes(size, static_cast<std::byte>(fill)); }

// Runs `part` once per rank, each on a thread of its own.
void on_all(const Transports& transports, const std::function<void(LocalTransport&)>& part) {
  std::vector<std::thread> threads;
  for (const auto& transport : transports) {
    threads.emplace_back([&part, &transport] { part(*transport); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(LocalTransport, KnowsRanksAndHosts) {
  const Transports ranks = LocalTransport::create(3);
  ASSERT_EQ(ranks.size(), 3u);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(ranks[static_cast<size_t>(r)]->rank(), r);
    EXPECT_EQ(ranks[static_cast<size_t>(r)]->size(), 3);
    EXPECT_EQ(ranks[static_cast<size_t>(r)]->ranks_on_host(), 3);
    EXPECT_FALSE(ranks[0]->host(r).empty());
  }
}

TEST(LocalTransport, MessagesComeInOrderPerChannelAndSender) {
  const Transports ranks = LocalTransport::create(3);
  for (int i = 0; i < 100; ++i) {
    ranks[0]->send(2, Channel::kStep, bytes_of(static_cast<size_t>(i), i));
    ranks[0]->send(2, Channel::kTokens, bytes_of(3, i));
    ranks[1]->send(2, Channel::kStep, bytes_of(5, 200 - i));
  }
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(ranks[2]->receive(1, Channel::kStep), bytes_of(5, 200 - i));
    EXPECT_EQ(ranks[2]->receive(0, Channel::kStep), bytes_of(static_cast<size_t>(i), i));
  }
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(ranks[2]->try_receive(0, Channel::kTokens), bytes_of(3, i));
  }
  EXPECT_EQ(ranks[2]->try_receive(0, Channel::kTokens), std::nullopt);
  EXPECT_EQ(ranks[2]->try_receive(1, Channel::kSetup), std::nullopt);
}

TEST(LocalTransport, AReceiveWaits) {
  const Transports ranks = LocalTransport::create(2);
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ranks[1]->send(0, Channel::kTokens, bytes_of(4, 4));
  });
  EXPECT_EQ(ranks[0]->receive(1, Channel::kTokens), bytes_of(4, 4));
  late.join();
}

TEST(LocalTransport, AWaitEndsAtItsDeadlineAndNamesTheRank) {
  const Transports ranks = LocalTransport::create(2, std::chrono::milliseconds(100));
  const auto start = std::chrono::steady_clock::now();
  try {
    ranks[0]->receive(1, Channel::kTokens);
    FAIL() << "nothing was thrown";
  } catch (const PeerLost& e) {
    EXPECT_NE(std::string(e.what()).find("rank 1 (host " + ranks[0]->host(1) + ")"),
              std::string::npos)
        << e.what();
  }
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
}

TEST(LocalTransport, GatherAndBroadcast) {
  const Transports ranks = LocalTransport::create(4);
  on_all(ranks, [](LocalTransport& transport) {
    const int rank = transport.rank();
    for (int round = 0; round < 50; ++round) {
      const std::vector<Bytes> all = gather(transport, bytes_of(static_cast<size_t>(rank), rank));
      if (rank == 0) {
        ASSERT_EQ(all.size(), 4u);
        for (int r = 0; r < 4; ++r) {
          EXPECT_EQ(all[static_cast<size_t>(r)], bytes_of(static_cast<size_t>(r), r));
        }
      } else {
        EXPECT_TRUE(all.empty());
      }
      const Bytes said = broadcast(transport, bytes_of(7, rank == 0 ? round : 99));
      EXPECT_EQ(said, bytes_of(7, round));
    }
  });
}

TEST(LocalTransport, HiddenStatesPassDownThePipeline) {
  constexpr size_t kBytes = 4096;
  const Transports ranks = LocalTransport::create(3);
  on_all(ranks, [](LocalTransport& transport) {
    std::vector<Bytes> memory(kLinkBuffers, Bytes(kBytes));
    std::vector<ActivationLink::HiddenBuffer> buffers(memory.begin(), memory.end());
    transport.set_buffers(buffers, transport.rank() > 0);
    for (size_t step = 1; step <= 200; ++step) {
      const size_t size = step * 13 % kBytes + 1;
      const auto buffer = transport.rank() == 0 ? transport.take() : transport.receive(size);
      const auto expected = static_cast<std::byte>(step + static_cast<size_t>(transport.rank()));
      if (transport.rank() == 0) {
        std::fill_n(buffer.begin(), size, expected);
      }
      ASSERT_EQ(std::count(buffer.begin(), buffer.begin() + size, expected), size);
      for (std::byte& b : buffer.first(size)) {
        b = static_cast<std::byte>(std::to_integer<int>(b) + 1);
      }
      if (transport.rank() < 2) {
        transport.send(buffer, size);
      } else {
        transport.recycle(buffer);
      }
    }
  });
}

TEST(LocalTransport, HiddenStatesOfAnotherSizeAreAnErrorOfTheProgram) {
  const Transports ranks = LocalTransport::create(2);
  std::vector<Bytes> memory(2 * kLinkBuffers, Bytes(64));
  ranks[0]->set_buffers({memory[0], memory[1], memory[2]}, false);
  ranks[1]->set_buffers({memory[3], memory[4], memory[5]}, true);
  ranks[0]->send(ranks[0]->take(), 32);
  EXPECT_THROW(ranks[1]->receive(31), std::logic_error);
}

TEST(LocalTransport, ThereAreNoMoreBuffersThanWereGiven) {
  const Transports ranks = LocalTransport::create(1);
  std::vector<Bytes> memory(kLinkBuffers, Bytes(64));
  ranks[0]->set_buffers({memory[0], memory[1], memory[2]}, false);
  const auto first = ranks[0]->take();
  ranks[0]->take();
  ranks[0]->take();
  EXPECT_THROW(ranks[0]->take(), std::logic_error);
  ranks[0]->recycle(first);
  EXPECT_EQ(ranks[0]->take().data(), first.data());
}

}  // namespace
}  // namespace headrace
