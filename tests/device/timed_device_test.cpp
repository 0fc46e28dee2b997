// What a device that keeps time says to a timeline, on a device without hardware.
#include "engine/device/timed_device.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "engine/device/hidden_window.h"
#include "tests/device/fake_device.h"

namespace headrace {
namespace {

struct Seen {
  std::string name;
  int64_t begin, end;
};

class TimedDeviceTest : public testing::Test {
 protected:
  // Work in three streams; what is computed is right whether or not somebody looks.
  void work() {
    const auto compute = device_.make_stream();
    const auto weights = device_.make_stream(Track::kWeightsToGpu);
    const auto kv = device_.make_stream(Track::kKvToGpu);
    const auto event = device_.make_event();
    const std::vector<float> one(16, 1.0f);
    const auto bytes = std::as_bytes(std::span(one));
    std::vector<float> out(16), back(16);
    const auto x = device_.allocate(64), y = device_.allocate(64), page = device_.allocate(64);
    device_.copy_in(*weights, y->data(), bytes);
    device_.record(*weights, *event);
    device_.copy_in(*compute, x->data(), bytes);
    device_.wait(*compute, *event);
    device_.add(*compute, x->as<float>(), y->as<float>(), 1, 16);
    device_.copy_in(*kv, page->data(), bytes);
    device_.copy_out(*kv, std::as_writable_bytes(std::span(back)), page->data());
    device_.record(*compute);
    device_.relu(*compute, x->as<float>(), 1, 16);
    const auto recording = device_.end_recording(*compute);
    device_.replay(*compute, *recording);
    device_.copy_out(*compute, std::as_writable_bytes(std::span(out)), x->data());
    kv->synchronize();
    weights->synchronize();
    compute->synchronize();
    EXPECT_EQ(out, std::vector<float>(16, 2.0f));
    EXPECT_EQ(back, one);
  }

  static std::map<Track, std::vector<Seen>> events(const Timeline& timeline) {
    std::map<Track, std::vector<Seen>> seen;
    timeline.for_each_event([&](const TraceEvent& e) {
      seen[e.track].push_back({e.name, e.begin, e.end});
    });
    return seen;
  }

  static uint64_t bytes(const Timeline& timeline, Track track) {
    return timeline.totals().bytes[static_cast<size_t>(track)];
  }

  int64_t moved_on_ = 0;
  TimedDevice device_{std::make_unique<test::FakeDevice>(7), [this] { ++moved_on_; }};
};

TEST_F(TimedDeviceTest, ATraceHasTheOpsOfEachStreamByTheDevicesClock) {
  Timeline timeline(1000);
  const Timeline::Attach attach(timeline);
  timeline.start();
  const int64_t before = Timeline::now();
  work();
  timeline.stop();
  const auto seen = events(timeline);
  std::vector<std::string> names;
  int64_t last = before;
  for (const Seen& event : seen.at(Track::kGpu)) {
    names.push_back(event.name);
    EXPECT_GE(event.begin, last) << event.name;
    EXPECT_GT(event.end, event.begin) << event.name;
    last = event.end;
  }
  EXPECT_EQ(names, (std::vector<std::string>{"copy", "add", "step, replayed", "copy"}));
  EXPECT_EQ(seen.at(Track::kWeightsToGpu).size(), 1U);
  EXPECT_EQ(seen.at(Track::kKvToGpu).size(), 1U);
  EXPECT_EQ(seen.at(Track::kKvFromGpu).size(), 1U);
  // What waits for the weights comes after them.
  EXPECT_GE(seen.at(Track::kGpu)[1].end, seen.at(Track::kWeightsToGpu)[0].end);
}

TEST_F(TimedDeviceTest, SaysThatItGoesOnWhileItIsWaitedFor) {
  const auto stream = device_.make_stream();
  const auto x = device_.allocate(64);
  const std::vector<float> zeros(16);
  device_.copy_in(*stream, x->data(), std::as_bytes(std::span(zeros)));
  for (int i = 1; i < 320; ++i) device_.relu(*stream, x->as<float>(), 1, 16);
  EXPECT_EQ(moved_on_, 320);
  stream->synchronize();
  EXPECT_EQ(moved_on_, 320 + 10);
  stream->synchronize();
  EXPECT_EQ(moved_on_, 330) << "nothing is left to wait for";
}

TEST_F(TimedDeviceTest, SaysThatItGoesOnWhileAnEventIsWaitedFor) {
  const auto compute = device_.make_stream(), copies = device_.make_stream(Track::kWeightsToGpu);
  const auto x = device_.allocate(64);
  const auto computed = device_.make_event(), copied = device_.make_event();
  std::vector<float> zeros(16);
  const auto many_ops = [&] {
    for (int i = 0; i < 3200; ++i) device_.relu(*compute, x->as<float>(), 1, 16);
    device_.record(*compute, *computed);
  };
  const auto copy_after_them = [&] {
    device_.wait(*copies, *computed);
    device_.copy_in(*copies, x->data(), std::as_bytes(std::span(zeros)));
    device_.record(*copies, *copied);
  };
  many_ops();
  int64_t before = moved_on_;
  computed->synchronize();
  EXPECT_GT(moved_on_, before + 50);
  // Of what the event waits for in another stream, and of a stream that waits.
  many_ops();
  copy_after_them();
  before = moved_on_;
  copied->synchronize();
  EXPECT_GT(moved_on_, before + 50);
  many_ops();
  copy_after_them();
  before = moved_on_;
  copies->synchronize();
  EXPECT_GT(moved_on_, before + 50);
  compute->synchronize();
}

// In streams of their own, but who waits for them hears of the ops on them.
TEST_F(TimedDeviceTest, HiddenStatesThatPassHaveTracksAndSignsOfGoingOn) {
  constexpr int64_t kRows = 4, kWidth = 16, kPieces = 8;
  constexpr int kLayers = 10, kOps = 4;
  Timeline timeline(1000);
  const Timeline::Attach attach(timeline);
  timeline.start();
  const auto compute = device_.make_stream();
  const auto room = device_.allocate(3 * kRows * kWidth * sizeof(float));
  std::vector<float> host(kPieces * kRows * kWidth);
  HiddenWindow window(device_, *compute, {room->as<float>(), 3 * kRows * kWidth}, kRows, kWidth);
  window.begin_sweep(host.data(), std::vector<int64_t>(kPieces, kRows), kLayers, false);
  for (int64_t piece = 0; piece < kPieces * kLayers; ++piece) {
    float* const x = window.acquire();
    for (int i = 0; i < kOps; ++i) device_.relu(*compute, x, kRows, kWidth);
    window.release();
  }
  const int64_t before = moved_on_;
  window.end_sweep();
  EXPECT_EQ(moved_on_, before + kPieces * kLayers * kOps / 32);
  compute->synchronize();  // hears of the last ones, too
  timeline.stop();
  for (const Track track : {Track::kHiddenToGpu, Track::kHiddenFromGpu}) {
    EXPECT_EQ(bytes(timeline, track), kLayers * host.size() * sizeof(float));
    EXPECT_EQ(std::ssize(events(timeline)[track]), kPieces * kLayers);
  }
}

TEST_F(TimedDeviceTest, MarksOfAStreamThatNobodyWaitsForAreUsedAgain) {
  constexpr int kMarks = 1000, kOps = 32 * kMarks;
  const auto stream = device_.make_stream();
  const auto x = device_.allocate(64);
  const std::vector<float> zeros(16);
  device_.copy_in(*stream, x->data(), std::as_bytes(std::span(zeros)));
  const auto done = device_.make_event();
  for (int i = 1; i < kOps; ++i) {
    device_.relu(*stream, x->as<float>(), 1, 16);
    if (i % 100 != 0) continue;
    device_.record(*stream, *done);
    while (!done->wait_a_moment()) {
    }
  }
  EXPECT_EQ(moved_on_, kOps);
  stream->synchronize();
  EXPECT_LT(moved_on_, kOps + kMarks / 5);
}

TEST_F(TimedDeviceTest, BytesCountWithoutATraceToo) {
  for (const size_t room : {size_t{0}, size_t{1000}}) {
    Timeline timeline(room);
    const Timeline::Attach attach(timeline);
    work();
    EXPECT_EQ(bytes(timeline, Track::kWeightsToGpu), 0U) << "a run has not begun";
    timeline.start();
    work();
    timeline.stop();
    for (const Track track : {Track::kWeightsToGpu, Track::kKvToGpu, Track::kKvFromGpu}) {
      EXPECT_EQ(bytes(timeline, track), 64U) << name_of(track);
    }
    EXPECT_EQ(bytes(timeline, Track::kGpu), 0U);
    work();
    EXPECT_EQ(bytes(timeline, Track::kWeightsToGpu), 64U) << "it is over";
  }
}

}  // namespace
}  // namespace headrace
