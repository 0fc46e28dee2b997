#include "engine/timeline.h"

#include <algorithm>
#include <new>
#include <utility>

namespace headrace {
namespace {

thread_local Timeline* attached = nullptr;
constexpr int64_t kShortestWait = 1000;  // ns, of those a trace shows

size_t at(auto value) { return static_cast<size_t>(value); }

}  // namespace

const char* name_of(Track track) {
  constexpr const char* kNames[] = {"compute",
                                    "GPU",
                                    "weights in",
                                    "KV in",
                                    "KV out",
                                    "send",
                                    "receive",
                                    "weights to the GPU",
                                    "KV to the GPU",
                                    "KV from the GPU",
                                    "hidden states to the GPU",
                                    "hidden states from the GPU"};
  return kNames[at(track)];
}

const char* name_of(Activity activity) {
  constexpr const char* kNames[] = {"other work",
                                    "computing",
                                    "waiting for weights",
                                    "waiting for KV",
                                    "waiting for the previous stage",
                                    "idle"};
  return kNames[at(activity)];
}

const char* name_of(Arg::Key key) {
  constexpr const char* kNames[] = {"", "layer", "rows", "bytes", "step", "peer"};
  return kNames[at(key)];
}

// calloc: pages of zeros that cost nothing until they are written.
Timeline::Timeline(size_t events)
    : capacity_(events),
      events_(events > 0 ? static_cast<TraceEvent*>(std::calloc(events, sizeof(TraceEvent)))
                         : nullptr) {
  if (events > 0 && !events_) throw std::bad_alloc();
}

Timeline::Attach::Attach(Timeline& timeline) : before_(std::exchange(attached, &timeline)) {}
Timeline::Attach::~Attach() { attached = before_; }
Timeline* Timeline::of_thread() { return attached; }

void Timeline::start() {
  running_ = true;
  activity_ = Activity::kOther;
  since_ = started_ = now();
}

void Timeline::stop() {
  if (!running_) return;
  settle(activity_);
  wall_ns_ += since_ - started_;
  running_ = false;
}

Activity Timeline::change_to(Activity activity) {
  const Activity before = std::exchange(activity_, activity);
  if (running_ && before != activity) settle(before);
  return before;
}

void Timeline::settle(Activity activity) {
  const int64_t time = now();
  activity_ns_[at(activity)] += time - std::exchange(since_, time);
}

void Timeline::reassign(Activity from, Activity to, int64_t ns) {
  ns = std::clamp<int64_t>(ns, 0, activity_ns_[at(from)]);
  activity_ns_[at(from)] -= ns;
  activity_ns_[at(to)] += ns;
}

void Timeline::record(Track track, const char* name, int64_t begin, int64_t end, Arg a, Arg b) {
  if (capacity_ == 0) return;
  const size_t place = next_.fetch_add(1, std::memory_order_relaxed);
  if (place >= capacity_) return;
  TraceEvent& event = events_[place];
  event.name = name;
  event.begin = begin;
  event.end = end;
  event.values = {a.value, b.value};
  event.keys = {a.key, b.key};
  event.track = track;
  std::atomic_ref(event.ready).store(1, std::memory_order_release);
}

void Timeline::moved(Track track, const char* name, int64_t begin, int64_t end, uint64_t bytes,
                     Arg arg) {
  bytes_[at(track)].fetch_add(bytes, std::memory_order_relaxed);
  transfers_[at(track)].fetch_add(1, std::memory_order_relaxed);
  record(track, name, begin, end, {Arg::kBytes, static_cast<int64_t>(bytes)}, arg);
}

void Timeline::count(Counter counter, int64_t n) {
  counts_[at(counter)].fetch_add(n, std::memory_order_relaxed);
}

TimelineTotals Timeline::totals() const {
  TimelineTotals totals;
  totals.wall_ns = wall_ns_;
  totals.activity_ns = activity_ns_;
  const auto copy = [](const auto& from, auto& to) {
    for (size_t i = 0; i < to.size(); ++i) to[i] = from[i].load(std::memory_order_relaxed);
  };
  copy(bytes_, totals.bytes);
  copy(transfers_, totals.transfers);
  copy(counts_, totals.counts);
  return totals;
}

void Timeline::for_each_event(const std::function<void(const TraceEvent&)>& f) const {
  const size_t count = recorded();
  for (size_t i = 0; i < count; ++i) {
    if (std::atomic_ref(events_[i].ready).load(std::memory_order_acquire)) f(events_[i]);
  }
}

size_t Timeline::recorded() const {
  return std::min(capacity_, next_.load(std::memory_order_relaxed));
}

uint64_t Timeline::dropped() const {
  const size_t count = next_.load(std::memory_order_relaxed);
  return capacity_ > 0 && count > capacity_ ? count - capacity_ : 0;
}

Wait::Wait(For what) : timeline_(Timeline::of_thread()) {
  if (!timeline_) return;
  constexpr Activity kActivitiesOf[] = {Activity::kWeights, Activity::kKv, Activity::kPeer,
                                        Activity::kIdle};
  activity_ = kActivitiesOf[at(what)];
  before_ = timeline_->change_to(activity_);
  if (timeline_->tracing()) begin_ = Timeline::now();
}

Wait::~Wait() {
  if (!timeline_) return;
  timeline_->change_to(before_);
  if (!timeline_->tracing()) return;
  const int64_t end = Timeline::now();
  if (end - begin_ >= kShortestWait) {
    timeline_->record(Track::kCompute, name_of(activity_), begin_, end);
  }
}

}  // namespace headrace
