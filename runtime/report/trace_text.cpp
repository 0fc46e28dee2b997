#include "runtime/report/trace_text.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

namespace headrace {
namespace {

constexpr int kLanesPerTrack = 100;

std::string json_text(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

TraceText::TraceText(const Timeline& timeline, int rank, const std::string& host,
                     const ClockFit& clock, int64_t origin)
    : rank_(rank), clock_(clock), origin_(origin) {
  events_.reserve(timeline.recorded());
  timeline.for_each_event([this](const TraceEvent& event) { events_.push_back(&event); });
  std::sort(events_.begin(), events_.end(), [](const TraceEvent* a, const TraceEvent* b) {
    return std::tuple(a->track, a->begin, b->end) < std::tuple(b->track, b->begin, a->end);
  });
  add_metadata("process_name", 0, json_text(fmt::format("rank {} on {}", rank, host)));
  std::string label = rank == 0 ? "the clock of this trace"
                                : fmt::format("clock within {:.0f} us of rank 0's",
                                              static_cast<double>(clock.error()) / 1e3);
  if (timeline.dropped() > 0) {
    label += fmt::format("; {} later events were dropped", timeline.dropped());
  }
  add_metadata("process_labels", 0, json_text(label));
  add_metadata("process_sort_index", 0, std::to_string(rank));
}

std::optional<std::string> TraceText::next_piece() {
  while (next_ < events_.size() && text_.size() < kPieceBytes) add_event(*events_[next_++]);
  if (text_.empty()) return std::nullopt;
  return std::exchange(text_, {});
}

void TraceText::add_metadata(const char* kind, int thread, const std::string& value) {
  const std::string_view name = kind;
  const char* key = name.ends_with("_index")    ? "sort_index"
                    : name.ends_with("_labels") ? "labels"
                                                : "name";
  fmt::format_to(std::back_inserter(text_),
                 R"({}{{"ph":"M","name":"{}","pid":{},"tid":{},"args":{{"{}":{}}}}})",
                 text_.empty() ? "" : ",\n", kind, rank_, thread, key, value);
}

// Spans of the compute track nest, as their scopes do; transfers get a lane to themselves.
int TraceText::lane_of(const TraceEvent& event) {
  auto& lanes = lanes_[static_cast<size_t>(event.track)];
  const bool may_nest = event.track == Track::kCompute;
  size_t lane = 0;
  for (; lane < lanes.size(); ++lane) {
    auto& open = lanes[lane].open;
    while (!open.empty() && open.back() <= event.begin) open.pop_back();
    if (open.empty() || (may_nest && event.end <= open.back())) break;
  }
  const int thread = static_cast<int>(event.track) * kLanesPerTrack + static_cast<int>(lane);
  if (lane == lanes.size()) {
    lanes.emplace_back();
    std::string name = name_of(event.track);
    if (lane > 0) name += " " + std::to_string(lane + 1);
    add_metadata("thread_name", thread, json_text(name));
    add_metadata("thread_sort_index", thread, std::to_string(thread));
  }
  lanes[lane].open.push_back(event.end);
  return thread;
}

void TraceText::add_event(const TraceEvent& event) {
  const int thread = lane_of(event);
  const int64_t begin = clock_.to_first(event.begin), end = clock_.to_first(event.end);
  const auto out = std::back_inserter(text_);
  fmt::format_to(
      out, R"({}{{"ph":"X","name":"{}","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{{)",
      text_.empty() ? "" : ",\n", event.name, rank_, thread,
      static_cast<double>(begin - origin_) / 1e3, static_cast<double>(end - begin) / 1e3);
  const char* separator = "";
  for (size_t i = 0; i < event.keys.size(); ++i) {
    if (event.keys[i] == Arg::kNone) continue;
    fmt::format_to(out, R"({}"{}":{})", separator, name_of(event.keys[i]), event.values[i]);
    separator = ",";
  }
  text_ += "}}";
}

}  // namespace headrace
