// What a rank spends its time on: totals always, single events when a trace was asked for.
//
// The thread that runs a stage attaches a Timeline; `Compute`, `Wait` and `Span` scopes then find
// it by themselves and cost nothing on threads (and in tests) that attached none. Other threads
// (I/O completions, the communicator's) hold a pointer and call `moved`, `record` and `count`:
//
//   Timeline* timeline = Timeline::of_thread();        // in a constructor; may be null
//   const int64_t begin = Timeline::now();             // at submission
//   if (timeline) timeline->moved(Track::kWeightsIn, "read", begin, Timeline::now(), bytes,
//                                 {Arg::kLayer, 3});   // at completion
//   { const Wait wait(Wait::kWeights); ...block... }   // around every blocking wait
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>

namespace headrace {

enum class Track : uint8_t {
  kCompute,
  kGpu,  // what its kernels do
  kWeightsIn,
  kKvIn,
  kKvOut,
  kSend,
  kReceive,
  kWeightsToGpu,
  kKvToGpu,
  kKvFromGpu,
  kHiddenToGpu,
  kHiddenFromGpu
};
inline constexpr int kTracks = 12;
const char* name_of(Track track);  // "weights in"

// What the stage's thread does; at any moment it is exactly one of these.
enum class Activity : uint8_t {
  kOther,    // none of the below: reads requests, forms steps, writes results
  kCompute,  // a step: embedding, layers, head, sampling
  kWeights,  // waits for weights
  kKv,       // waits for KV pages
  kPeer,     // waits for the previous stage; on rank 0 for sampled tokens from the last one
  kIdle,     // there is nothing to do: no request has come
};
inline constexpr int kActivities = 6;
const char* name_of(Activity activity);  // "waiting for weights"

// A number beside a span's name.
struct Arg {
  enum Key : uint8_t { kNone, kLayer, kRows, kBytes, kStep, kPeer };
  Key key = kNone;
  int64_t value = 0;
};
const char* name_of(Arg::Key key);

enum class Counter : uint8_t { kSteps, kPrefillRows, kDecodeRows };
inline constexpr int kCounters = 3;

struct TraceEvent {
  const char* name;    // static
  int64_t begin, end;  // of Timeline::now()
  std::array<int64_t, 2> values;
  std::array<Arg::Key, 2> keys;
  Track track;
  uint8_t ready;  // written last
};

struct TimelineTotals {
  int64_t wall_ns = 0;                             // from start() to stop()
  std::array<int64_t, kActivities> activity_ns{};  // add up to wall_ns
  std::array<uint64_t, kTracks> bytes{};
  std::array<uint64_t, kTracks> transfers{};
  std::array<int64_t, kCounters> counts{};
};

class Timeline {
 public:
  // Room for so many events (48 bytes each, touched as they come); 0: totals only. What comes after
  // the last free place is counted as dropped.
  explicit Timeline(size_t events = 0);
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  // Nanoseconds of the monotonic clock of this machine.
  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  // While one lives, this timeline is the calling thread's. One thread at a time.
  class Attach {
   public:
    explicit Attach(Timeline& timeline);
    ~Attach();
    Attach(const Attach&) = delete;
    Attach& operator=(const Attach&) = delete;

   private:
    Timeline* before_;
  };
  // Null on threads that attached none.
  static Timeline* of_thread();

  // The time between the two is divided among activities. The attached thread calls them.
  void start();
  void stop();

  bool tracing() const { return capacity_ > 0; }
  // Between start() and stop(). The attached thread asks.
  bool running() const { return running_; }
  // A span of any track. Any thread; `name` must be a string literal.
  void record(Track track, const char* name, int64_t begin, int64_t end, Arg a = {}, Arg b = {});
  // A finished transfer: counts its bytes, and records the span. Any thread.
  void moved(Track track, const char* name, int64_t begin, int64_t end, uint64_t bytes,
             Arg arg = {});
  // Any thread.
  void count(Counter counter, int64_t n);

  // The attached thread changes over; returns what it did before. Scopes do it for you.
  Activity change_to(Activity activity);
  // Time that turned out to have been something else; at most what `from` has.
  void reassign(Activity from, Activity to, int64_t ns);

  // So far, up to the last change. The attached thread calls it.
  int64_t time_of(Activity activity) const { return activity_ns_[static_cast<size_t>(activity)]; }

  // After stop(). Counters and bytes are those of now.
  TimelineTotals totals() const;
  // Calls f for each complete event, in no particular order. Other threads may still record.
  void for_each_event(const std::function<void(const TraceEvent&)>& f) const;
  // How many there are, complete or not.
  size_t recorded() const;
  uint64_t dropped() const;

 private:
  void settle(Activity activity);  // the time since the last change was this

  struct Free {
    void operator()(TraceEvent* events) const { std::free(events); }
  };

  size_t capacity_;
  std::unique_ptr<TraceEvent[], Free> events_;
  std::atomic<size_t> next_{0};
  std::array<std::atomic<uint64_t>, kTracks> bytes_{};
  std::array<std::atomic<uint64_t>, kTracks> transfers_{};
  std::array<std::atomic<int64_t>, kCounters> counts_{};

  // Of the attached thread.
  bool running_ = false;
  Activity activity_ = Activity::kOther;
  int64_t since_ = 0, started_ = 0, wall_ns_ = 0;
  std::array<int64_t, kActivities> activity_ns_{};
};

// A span on the attached thread; does nothing without a trace.
class Span {
 public:
  Span(Track track, const char* name, Arg a = {}, Arg b = {})
      : Span(Timeline::of_thread(), track, name, a, b) {}
  Span(Timeline* timeline, Track track, const char* name, Arg a = {}, Arg b = {})
      : timeline_(timeline && timeline->tracing() ? timeline : nullptr) {
    if (!timeline_) return;
    track_ = track, name_ = name, a_ = a, b_ = b;
    begin_ = Timeline::now();
  }
  ~Span() {
    if (timeline_) timeline_->record(track_, name_, begin_, Timeline::now(), a_, b_);
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Timeline* timeline_;
  Track track_{};
  const char* name_ = nullptr;
  Arg a_, b_;
  int64_t begin_ = 0;
};

// The attached thread computes a step while one lives.
class Compute {
 public:
  Compute() : timeline_(Timeline::of_thread()) {
    if (timeline_) before_ = timeline_->change_to(Activity::kCompute);
  }
  ~Compute() {
    if (timeline_) timeline_->change_to(before_);
  }
  Compute(const Compute&) = delete;
  Compute& operator=(const Compute&) = delete;

 private:
  Timeline* timeline_;
  Activity before_ = Activity::kOther;
};

// The attached thread waits while one lives; may lie inside a Compute, whose time it then is not.
// In a trace, a span on the compute track if it took a microsecond.
class Wait {
 public:
  enum For : uint8_t { kWeights, kKv, kPeer, kIdle };
  explicit Wait(For what);
  ~Wait();
  Wait(const Wait&) = delete;
  Wait& operator=(const Wait&) = delete;

 private:
  Timeline* timeline_;
  Activity activity_ = Activity::kOther, before_ = Activity::kOther;
  int64_t begin_ = 0;
};

}  // namespace headrace
