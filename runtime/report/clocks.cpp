#include "runtime/report/clocks.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "runtime/json_bytes.h"

namespace headrace {
namespace {

constexpr int kPings = 16;

ClockSample ping(Communicator& communicator, int rank, const ClockReader& clock) {
  ClockSample best;
  for (int i = 0; i < kPings; ++i) {
    const int64_t begin = clock();
    communicator.send(rank, Channel::kSetup, {});
    const auto local = from_bytes(communicator.receive(rank, Channel::kSetup)).get<int64_t>();
    const int64_t round_trip = clock() - begin;
    if (i == 0 || round_trip / 2 < best.error) {
      best = {local, begin + round_trip / 2, round_trip / 2};
    }
  }
  return best;
}

}  // namespace

std::vector<ClockSample> sample_clocks(Communicator& communicator, const ClockReader& clock) {
  if (communicator.rank() != 0) {
    for (int i = 0; i < kPings; ++i) {
      communicator.receive(0, Channel::kSetup);
      communicator.send(0, Channel::kSetup, to_bytes(nlohmann::json(clock())));
    }
    return {};
  }
  const int64_t now = clock();
  std::vector<ClockSample> samples = {{now, now, 0}};
  for (int r = 1; r < communicator.size(); ++r) samples.push_back(ping(communicator, r, clock));
  return samples;
}

ClockFit::ClockFit(const ClockSample& begin, const ClockSample& end)
    : at_(begin.local),
      offset_(begin.first - begin.local),
      error_(std::max(begin.error, end.error)) {
  const int64_t span = end.local - begin.local, end_offset = end.first - end.local;
  if (span > 0 && std::abs(end_offset - offset_) > begin.error + end.error) {
    drift_ = static_cast<double>(end_offset - offset_) / static_cast<double>(span);
  } else if (end.error < begin.error) {
    offset_ = end_offset;
  }
}

int64_t ClockFit::to_first(int64_t local) const {
  return local + offset_ + std::llround(drift_ * static_cast<double>(local - at_));
}

nlohmann::json ClockFit::to_json() const {
  return {{"at", at_}, {"offset", offset_}, {"drift", drift_}, {"error", error_}};
}

ClockFit ClockFit::from_json(const nlohmann::json& json) {
  ClockFit fit;
  fit.at_ = json.at("at");
  fit.offset_ = json.at("offset");
  fit.drift_ = json.at("drift");
  fit.error_ = json.at("error");
  return fit;
}

}  // namespace headrace
