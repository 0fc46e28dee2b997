#include "comm/peer_watch.h"

#include <gtest/gtest.h>

#include <string>

#include "comm/error.h"

namespace headrace {
namespace {

using namespace std::chrono_literals;

// Rank 0 of three, with a clock of the test's own; judges ten times a second, as often as a rank
// does at least.
class PeerWatchTest : public testing::Test {
 protected:
  void hear(PeerState state_of_1, PeerState state_of_2, uint64_t progress = 0) {
    watch_.heard(1, {progress, state_of_1, 0}, now_);
    watch_.heard(2, {progress, state_of_2, 0}, now_);
  }
  // What judge() throws within this time, or "".
  std::string pass(std::chrono::milliseconds time) {
    for (const auto end = now_ + time; now_ < end;) {
      now_ += 100ms;
      try {
        watch_.judge(now_);
      } catch (const PeerLost& e) {
        return e.what();
      }
    }
    return "";
  }

  PeerWatch::Time now_ = PeerWatch::Time(1h);
  PeerWatch watch_{0, 3, PeerWatch::Seconds(3.0), now_};
};

TEST_F(PeerWatchTest, ASilentRankIsNamedAfterTheTimeoutAndNotBefore) {
  watch_.name_hosts({"a", "b", "c"});
  EXPECT_EQ(pass(2s), "");
  watch_.heard(1, {1, PeerState::kWorking, 0}, now_);
  EXPECT_EQ(pass(900ms), "");
  const std::string text = pass(200ms);
  EXPECT_NE(text.find("rank 2 (host c) gave no sign of life for 3.0 s"), std::string::npos) << text;
}

TEST_F(PeerWatchTest, ARankThatSaysItWorksMustMakeProgress) {
  for (uint64_t second = 1; second <= 10; ++second) {
    hear(PeerState::kWorking, PeerState::kWorking, second);
    ASSERT_EQ(pass(1s), "");
  }
  std::string text;
  for (int second = 1; second <= 3 && text.empty(); ++second) {
    watch_.heard(1, {10, PeerState::kWorking, 0}, now_);  // the same number again
    watch_.heard(2, {20 + static_cast<uint64_t>(second), PeerState::kWorking, 0}, now_);
    text = pass(1s);
  }
  EXPECT_TRUE(text.starts_with("rank 1 gave")) << text;
}

TEST_F(PeerWatchTest, WaitingAndIdleRanksNeedNoProgress) {
  for (int second = 0; second < 10; ++second) {
    hear(PeerState::kWaiting, PeerState::kIdle);
    ASSERT_EQ(pass(1s), "");
  }
}

TEST_F(PeerWatchTest, ARankThatIsGoneIsNotMissed) {
  EXPECT_FALSE(watch_.others_are_gone());
  watch_.heard(2, {0, PeerState::kGone, 0}, now_);
  EXPECT_FALSE(watch_.others_are_gone());
  for (int second = 0; second < 5; ++second) {
    watch_.heard(1, {0, PeerState::kWaiting, 0}, now_);
    ASSERT_EQ(pass(1s), "");
  }
  watch_.heard(1, {0, PeerState::kGone, 0}, now_);
  EXPECT_TRUE(watch_.others_are_gone());
  EXPECT_EQ(pass(10s), "");
}

TEST_F(PeerWatchTest, AfterAStopOfThisProcessTheOthersHaveTheWholeTimeoutAgain) {
  hear(PeerState::kWaiting, PeerState::kWaiting);
  now_ += 1h;
  EXPECT_EQ(pass(2900ms), "");
  EXPECT_NE(pass(300ms), "");
}

TEST_F(PeerWatchTest, AllRanksWaitingForEachOtherIsALostMessage) {
  watch_.set_own_state(PeerState::kWaiting);
  std::string text;
  int seconds = 0;
  for (; seconds < 10 && text.empty(); ++seconds) {
    hear(PeerState::kWaiting, PeerState::kWaiting);
    text = pass(1s);
  }
  EXPECT_NE(text.find("all ranks wait for each other"), std::string::npos) << text;
  EXPECT_EQ(seconds, 7);  // twice the timeout
}

TEST_F(PeerWatchTest, RanksThatAlwaysTellOfAWaitGoOnAsLongAsMessagesMove) {
  watch_.set_own_state(PeerState::kWaiting);
  for (int second = 0; second < 20; ++second) {
    hear(PeerState::kWaiting, PeerState::kWaiting);
    ASSERT_EQ(pass(1s), "");
    if (second % 5 == 0) watch_.moved(now_);
  }
}

TEST_F(PeerWatchTest, WhoIsIdleForLongerThanItSaysIsStuck) {
  watch_.set_idle(30min, now_);
  EXPECT_EQ(watch_.told_state(now_ + 30min), PeerState::kIdle);
  EXPECT_EQ(watch_.told_state(now_ + 31min), PeerState::kWorking);
  watch_.set_idle(30min, now_ + 29min);
  EXPECT_EQ(watch_.told_state(now_ + 58min), PeerState::kIdle);
  watch_.set_idle(std::chrono::minutes::max(), now_);  // for input
  EXPECT_EQ(watch_.told_state(now_ + 24h * 365), PeerState::kIdle);
  watch_.set_own_state(PeerState::kWaiting);
  EXPECT_EQ(watch_.told_state(now_ + 24h * 365), PeerState::kWaiting);
}

TEST_F(PeerWatchTest, OneRankThatIsNotWaitingIsEnoughToGoOn) {
  for (const PeerState own : {PeerState::kWaiting, PeerState::kIdle}) {
    watch_.set_own_state(own);
    for (int second = 0; second < 10; ++second) {
      hear(PeerState::kWaiting, own == PeerState::kIdle ? PeerState::kWaiting : PeerState::kIdle);
      ASSERT_EQ(pass(1s), "");
    }
  }
}

}  // namespace
}  // namespace headrace
