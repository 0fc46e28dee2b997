// Clocks of different machines, brought to that of rank 0.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "comm/communicator.h"

namespace headrace {

using ClockReader = std::function<int64_t()>;  // nanoseconds

// What a rank's clock showed at some moment, and what rank 0's did then, give or take `error`
// nanoseconds: half of the quickest ping's round trip (the method of NTP, RFC 5905 section 8).
struct ClockSample {
  int64_t local = 0;
  int64_t first = 0;
  int64_t error = 0;
};

// Pings every rank. All ranks call it; the samples, by rank, are rank 0's (empty elsewhere).
std::vector<ClockSample> sample_clocks(Communicator& communicator, const ClockReader& clock);

// The straight line through two samples: offset and drift. Where the samples agree within their
// errors (a short run, or ranks of one machine), the better one's offset and no drift.
class ClockFit {
 public:
  ClockFit() = default;  // of rank 0 itself
  ClockFit(const ClockSample& begin, const ClockSample& end);

  // Rank 0's clock at the moment when this rank's showed `local`.
  int64_t to_first(int64_t local) const;
  int64_t error() const { return error_; }  // ns, between the samples
  double drift() const { return drift_; }   // ns by which rank 0's clock gains per ns
  int64_t offset() const { return offset_; }

  nlohmann::json to_json() const;
  static ClockFit from_json(const nlohmann::json& json);

 private:
  int64_t at_ = 0;
  int64_t offset_ = 0;  // rank 0's clock less this one, at `at_`
  double drift_ = 0;
  int64_t error_ = 0;
};

}  // namespace headrace
