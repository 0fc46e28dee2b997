#include "comm/backoff.h"

#include <gtest/gtest.h>

namespace headrace {
namespace {

using namespace std::chrono_literals;
using Time = Backoff::Clock::time_point;

// Looks of a thread that finds nothing for `wait`.
int looks(Backoff& backoff, Time& now, Backoff::Clock::duration wait, double late) {
  int looks = 0;
  for (const Time end = now + wait; now < end; ++looks) {
    now += std::max<Backoff::Clock::duration>(1us, backoff.pause(now, late));
  }
  return looks;
}

TEST(Backoff, SpinsThenSleepsLongerAndLonger) {
  const Time begin(1h);
  Backoff backoff(begin);
  EXPECT_EQ(backoff.pause(begin, 1.0 / 64), 0us);
  EXPECT_EQ(backoff.pause(begin + 49us, 1.0 / 64), 0us);
  for (const auto expected : {20us, 40us, 80us, 160us, 200us, 200us}) {
    EXPECT_EQ(backoff.pause(begin + 60us, 1.0 / 64), expected);
  }
  EXPECT_EQ(backoff.pause(begin + 12ms, 1.0 / 64), 200us);
  EXPECT_EQ(backoff.pause(begin + 32ms, 1.0 / 64), 500us);
  EXPECT_EQ(backoff.pause(begin + 64ms, 1.0 / 64), 1000us);
  EXPECT_EQ(backoff.pause(begin + 10s, 1.0 / 64), 1000us);
  EXPECT_EQ(backoff.pause(begin + 10s, 0), 200us);
  backoff.restart(begin + 10s);
  EXPECT_EQ(backoff.pause(begin + 10s, 1.0 / 64), 0us);
  EXPECT_EQ(backoff.pause(begin + 10s + 50us, 1.0 / 64), 20us);
}

// What the sleeps are for: a fifth of the looks, late by little.
TEST(Backoff, PatienceCostsLittleAndSavesMost) {
  for (const double late : {0.0, 1.0 / 64}) {
    Time now(1h);
    Backoff backoff(now);
    looks(backoff, now, 10s, late);
    const int in_a_second = looks(backoff, now, 1s, late);
    EXPECT_EQ(in_a_second, late > 0 ? 1000 : 5000);
  }
  for (const std::chrono::microseconds wait : {13ms, 20ms, 50ms, 63ms}) {
    Backoff backoff{Time(1h)};
    EXPECT_LE(backoff.pause(Time(1h) + wait, 1.0 / 64), wait / 64 + 1us) << wait.count();
  }
}

}  // namespace
}  // namespace headrace
