#include "engine/timeline.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace headrace {
namespace {

using namespace std::chrono_literals;

int64_t of(const TimelineTotals& totals, Activity activity) {
  return totals.activity_ns[static_cast<size_t>(activity)];
}

int64_t sum(const TimelineTotals& totals) {
  return std::accumulate(totals.activity_ns.begin(), totals.activity_ns.end(), int64_t{0});
}

TEST(Timeline, ActivitiesAddUpToTheWallTimeExactly) {
  Timeline timeline;
  const Timeline::Attach attach(timeline);
  timeline.start();
  for (int i = 0; i < 50; ++i) {
    const Compute computing;
    std::this_thread::sleep_for(100us);
    {
      const Wait waiting(Wait::kWeights);
      std::this_thread::sleep_for(200us);
      const Wait inner(Wait::kKv);
      std::this_thread::sleep_for(100us);
    }
    const Wait peer(Wait::kPeer);
  }
  timeline.stop();
  const TimelineTotals totals = timeline.totals();
  EXPECT_EQ(sum(totals), totals.wall_ns);
  EXPECT_GE(of(totals, Activity::kCompute), 50 * 100'000);
  EXPECT_GE(of(totals, Activity::kWeights), 50 * 200'000);
  EXPECT_GE(of(totals, Activity::kKv), 50 * 100'000);
  EXPECT_GE(totals.wall_ns, 50 * 400'000);
  EXPECT_EQ(of(totals, Activity::kIdle), 0);
}

TEST(Timeline, OnlyTheTimeBetweenStartAndStopCounts) {
  Timeline timeline;
  const Timeline::Attach attach(timeline);
  { const Wait before(Wait::kPeer); }
  std::this_thread::sleep_for(2ms);
  const int64_t begin = Timeline::now();
  timeline.start();
  timeline.stop();
  const int64_t end = Timeline::now();
  { const Wait after(Wait::kPeer); }
  EXPECT_LE(timeline.totals().wall_ns, end - begin);
  EXPECT_EQ(of(timeline.totals(), Activity::kPeer), 0);
  EXPECT_EQ(sum(timeline.totals()), timeline.totals().wall_ns);
}

TEST(Timeline, TimeIsReassignedWithinWhatThereIs) {
  Timeline timeline;
  const Timeline::Attach attach(timeline);
  timeline.start();
  {
    const Wait waiting(Wait::kPeer);
    std::this_thread::sleep_for(1ms);
  }
  const int64_t waited = timeline.time_of(Activity::kPeer);
  timeline.reassign(Activity::kPeer, Activity::kIdle, 400'000);
  EXPECT_EQ(timeline.time_of(Activity::kIdle), 400'000);
  EXPECT_EQ(timeline.time_of(Activity::kPeer), waited - 400'000);
  timeline.reassign(Activity::kPeer, Activity::kIdle, 2 * waited);
  EXPECT_EQ(timeline.time_of(Activity::kIdle), waited);
  timeline.reassign(Activity::kIdle, Activity::kPeer, -5);
  EXPECT_EQ(timeline.time_of(Activity::kIdle), waited);
  timeline.stop();
  EXPECT_EQ(sum(timeline.totals()), timeline.totals().wall_ns);
}

TEST(Timeline, ThreadsWithoutATimelineRecordNothing) {
  Timeline timeline(100);
  const Timeline::Attach attach(timeline);
  std::thread([] {
    EXPECT_EQ(Timeline::of_thread(), nullptr);
    const Compute computing;
    const Span span(Track::kCompute, "step");
    const Wait waiting(Wait::kKv);
  }).join();
  int events = 0;
  timeline.for_each_event([&](const TraceEvent&) { ++events; });
  EXPECT_EQ(events, 0);
}

TEST(Timeline, AttachmentsNest) {
  Timeline outer, inner;
  const Timeline::Attach first(outer);
  {
    const Timeline::Attach second(inner);
    EXPECT_EQ(Timeline::of_thread(), &inner);
  }
  EXPECT_EQ(Timeline::of_thread(), &outer);
}

// Several threads fill the buffer while another reads it: whatever is read is whole.
TEST(Timeline, TakesEventsAndBytesOfManyThreads) {
  constexpr int kThreads = 4, kEach = 5000;
  Timeline timeline(kThreads * kEach);
  std::atomic<bool> over = false;
  const auto check = [&](const TraceEvent& event) {
    ASSERT_EQ(event.end, event.begin + 7);
    ASSERT_EQ(event.values[0], event.begin % 100);
    ASSERT_EQ(event.keys[0], Arg::kBytes);
    ASSERT_EQ(event.keys[1], Arg::kLayer);
    ASSERT_STREQ(event.name, "read");
  };
  std::thread reader([&] {
    while (!over) timeline.for_each_event(check);
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const int64_t begin = t * kEach + i;
        timeline.moved(t % 2 ? Track::kWeightsIn : Track::kKvIn, "read", begin, begin + 7,
                       static_cast<uint64_t>(begin % 100), {Arg::kLayer, t});
        timeline.count(Counter::kSteps, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  over = true;
  reader.join();
  std::map<int64_t, int> seen;
  timeline.for_each_event([&](const TraceEvent& event) { ++seen[event.begin]; });
  EXPECT_EQ(seen.size(), size_t{kThreads * kEach});
  EXPECT_EQ(timeline.dropped(), 0u);
  const TimelineTotals totals = timeline.totals();
  EXPECT_EQ(totals.transfers[static_cast<size_t>(Track::kWeightsIn)], 2u * kEach);
  EXPECT_EQ(totals.transfers[static_cast<size_t>(Track::kKvIn)], 2u * kEach);
  EXPECT_EQ(totals.bytes[static_cast<size_t>(Track::kKvIn)], 2u * kEach / 100 * 4950);
  EXPECT_EQ(totals.counts[static_cast<size_t>(Counter::kSteps)], kThreads * kEach);
}

TEST(Timeline, KeepsTheFirstEventsAndCountsTheRestAsDropped) {
  Timeline timeline(10);
  for (int i = 0; i < 25; ++i) timeline.record(Track::kSend, "step", i, i + 1);
  int64_t next = 0;
  timeline.for_each_event([&](const TraceEvent& event) { EXPECT_EQ(event.begin, next++); });
  EXPECT_EQ(next, 10);
  EXPECT_EQ(timeline.dropped(), 15u);
}

TEST(Timeline, WithoutATraceKeepsTotalsOnly) {
  Timeline timeline;
  const Timeline::Attach attach(timeline);
  { const Span span(Track::kCompute, "step"); }
  timeline.moved(Track::kSend, "step", 0, 1, 42);
  timeline.for_each_event([](const TraceEvent&) { ADD_FAILURE(); });
  EXPECT_EQ(timeline.dropped(), 0u);
  EXPECT_EQ(timeline.totals().bytes[static_cast<size_t>(Track::kSend)], 42u);
}

TEST(Timeline, NamesAreDistinct) {
  std::map<std::string, int> names;
  for (int i = 0; i < kTracks; ++i) ++names[name_of(static_cast<Track>(i))];
  for (int i = 0; i < kActivities; ++i) ++names[name_of(static_cast<Activity>(i))];
  EXPECT_EQ(names.size(), size_t{kTracks + kActivities});
}

}  // namespace
}  // namespace headrace
