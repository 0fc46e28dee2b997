#include "runtime/plan/agreement.h"

#include <gtest/gtest.h>

#include <thread>

#include "comm/error.h"
#include "comm/local_transport.h"
#include "runtime/error.h"

namespace headrace {
namespace {

const RankFacts kFacts = {"0.1.0", "f00", "kv=f16", "max-batch 8", {100, 60, 8, 512, ""},
                          "f32",   0,     2};

// What agree() gave each rank: room, or the text of its error.
struct Outcome {
  Agreement room;
  std::string usage_error;
  bool peer_lost = false;
};

std::vector<Outcome> agree_all(const std::vector<RankFacts>& facts) {
  const int size = static_cast<int>(facts.size());
  const auto transports = LocalTransport::create(size, std::chrono::milliseconds(300));
  std::vector<Outcome> outcomes(facts.size());
  std::vector<std::thread> threads;
  for (size_t r = 0; r < facts.size(); ++r) {
    threads.emplace_back([&, r] {
      try {
        outcomes[r].room = agree(*transports[r], facts[r]);
      } catch (const UsageError& e) {
        outcomes[r].usage_error = e.what();
      } catch (const PeerLost&) {
        outcomes[r].peer_lost = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

TEST(Agreement, TheLeastRoomCounts) {
  EXPECT_EQ(agree_all({kFacts})[0].room.kv_pages, 100);
  std::vector<RankFacts> facts(4, kFacts);
  facts[0].room = {100, 90, 8, 512, ""};
  facts[1].room = {300, 50, 32, 256, ""};
  facts[2].room = {70, 70, 16, 64, ""};
  facts[3].room = {200, 60, 4, 128, ""};
  facts[0].room.served = facts[1].room.served = 800000;
  facts[2].room.served = 70000;
  facts[3].room.served = INT64_MAX;
  for (const Outcome& outcome : agree_all(facts)) {
    EXPECT_EQ(outcome.room.kv_pages, 70);
    EXPECT_EQ(outcome.room.sequence_pages, 50);
    EXPECT_EQ(outcome.room.slots, 4);
    EXPECT_EQ(outcome.room.longest_step, 512);
    EXPECT_EQ(outcome.room.served, 70000);
    EXPECT_EQ(outcome.room.step_rows, 64);
  }
}

TEST(Agreement, PagesAreSharedWhereAllRanksCan) {
  const auto agree_all = [](const std::vector<PageSharing>& ranks) {
    const auto transports =
        LocalTransport::create(static_cast<int>(ranks.size()), std::chrono::seconds(5));
    std::vector<PageSharing> agreed(ranks.size());
    std::vector<std::thread> threads;
    for (size_t r = 0; r < ranks.size(); ++r) {
      threads.emplace_back([&, r] { agreed[r] = agree(*transports[r], ranks[r]); });
    }
    for (std::thread& thread : threads) thread.join();
    return agreed;
  };
  for (const PageSharing& agreed : agree_all({{}, {"", 70}, {"", 90}})) {
    EXPECT_EQ(agreed.why_not, "");
    EXPECT_EQ(agreed.table_pages, 70);
  }
  for (const PageSharing& agreed : agree_all({{}, {"disk"}, {"GPU", 90}})) {
    EXPECT_EQ(agreed.why_not, "disk");
    EXPECT_EQ(agreed.table_pages, 90);
  }
  EXPECT_EQ(agree_all({{}})[0].table_pages, PageSharing{}.table_pages);
}

TEST(Agreement, ArithmeticMayDiffer) {
  std::vector<RankFacts> facts(3, kFacts);
  EXPECT_EQ(agree_all(facts)[1].room.math, "f32");
  facts[1].math = "f16 on a GPU";
  const auto cut = [&](std::vector<int> ends) {
    for (size_t r = 0; r < 3; ++r) {
      facts[r].first_layer = r == 0 ? 0 : ends[r - 1];
      facts[r].end_layer = ends[r];
    }
  };
  cut({4, 5, 10});
  for (const Outcome& outcome : agree_all(facts)) {
    EXPECT_EQ(outcome.room.math,
              "f32 in layers 0-3, f16 on a GPU in layers 4-4, f32 in layers 5-9");
  }
  facts[2].math = facts[1].math;
  EXPECT_EQ(agree_all(facts)[0].room.math, "f32 in layers 0-3, f16 on a GPU in layers 4-9");
  cut({4, 8, 10});
  EXPECT_EQ(agree_all(facts)[0].room.math, "f32 in layers 0-3, f16 on a GPU in layers 4-9");
}

TEST(Agreement, AMismatchNamesTheKeyBothValuesAndBothRanks) {
  const auto text_of = [](size_t rank, const RankFacts& other) {
    std::vector<RankFacts> facts(3, kFacts);
    facts[rank] = other;
    const std::vector<Outcome> outcomes = agree_all(facts);
    // The others are not left to go on.
    EXPECT_TRUE(outcomes[1].peer_lost);
    EXPECT_TRUE(outcomes[2].peer_lost);
    return outcomes[0].usage_error;
  };
  const auto expect = [](const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << text;
    }
  };
  RankFacts other = kFacts;
  other.version = "0.2.0";
  expect(text_of(1, other), {"headrace version is 0.1.0 on rank 0 (host localhost)",
                             "0.2.0 on rank 1 (host localhost)", "start the same program"});
  other = kFacts;
  other.fingerprint = "bad";
  expect(text_of(2, other), {"model fingerprint is f00 on rank 0", "bad on rank 2"});
  other = kFacts;
  other.numerics = "kv=f32";
  expect(text_of(2, other), {"numerics is kv=f16 on rank 0", "kv=f32 on rank 2"});
  other = kFacts;
  other.schedule = "max-batch 9";
  expect(text_of(1, other), {"schedule is max-batch 8 on rank 0", "max-batch 9 on rank 1"});
}

}  // namespace
}  // namespace headrace
