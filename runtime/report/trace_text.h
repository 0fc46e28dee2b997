// Events of a timeline as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.
// Format: "Trace Event Format" (Google), complete events (ph X) and metadata (ph M).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/timeline.h"
#include "runtime/report/clocks.h"

namespace headrace {

// A process per rank; a thread per track, and further ones where transfers of a track overlap.
// Times are microseconds of rank 0's clock since `origin`.
class TraceText {
 public:
  // `timeline` must outlive it.
  TraceText(const Timeline& timeline, int rank, const std::string& host, const ClockFit& clock,
            int64_t origin);

  // The next events, joined by ",\n", about kPieceBytes long; nullopt after the last one.
  std::optional<std::string> next_piece();

  static constexpr size_t kPieceBytes = 256 << 10;

 private:
  struct Lane {
    std::vector<int64_t> open;  // ends of the spans that enclose the next one
  };
  void add_metadata(const char* kind, int thread, const std::string& value);
  void add_event(const TraceEvent& event);
  int lane_of(const TraceEvent& event);

  int rank_;
  ClockFit clock_;
  int64_t origin_;
  std::vector<const TraceEvent*> events_;  // by track, begin; enclosing spans first
  size_t next_ = 0;
  std::vector<Lane> lanes_[kTracks];
  std::string text_;
};

}  // namespace headrace
