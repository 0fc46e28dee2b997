#include "runtime/plan/agreement.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/json_bytes.h"

namespace headrace {
namespace {

using nlohmann::json;

struct StageMath {
  std::string math;
  int first_layer = 0, end_layer = 0;
};

// One where all are the same, else which layers are computed in what, however they are cut.
std::string together(const std::vector<StageMath>& stages) {
  std::vector<StageMath> parts;
  for (const StageMath& s : stages) {
    if (parts.empty() || parts.back().math != s.math) parts.push_back(s);
    parts.back().end_layer = s.end_layer;
  }
  if (parts.size() == 1) return parts.front().math;
  std::string text;
  for (const StageMath& s : parts) {
    text += (text.empty() ? "" : ", ") + s.math + " in layers " + std::to_string(s.first_layer) +
            "-" + std::to_string(s.end_layer - 1);
  }
  return text;
}

}  // namespace

Agreement agree(Communicator& communicator, const RankFacts& facts) {
  const auto room_of = [](const json& rank) { return rank.at("room").get<std::vector<int64_t>>(); };
  // Below zero where the most counts.
  const json mine = {{"headrace version", facts.version},
                     {"model fingerprint", facts.fingerprint},
                     {"numerics", facts.numerics},
                     {"schedule", facts.schedule},
                     {"math", facts.math},
                     {"layers", {facts.first_layer, facts.end_layer}},
                     {"room",
                      {facts.room.kv_pages, facts.room.sequence_pages, facts.room.slots,
                       facts.room.step_rows, -facts.room.step_rows, facts.room.served}}};
  std::vector<int64_t> least = room_of(mine);
  std::vector<StageMath> math = {{facts.math, facts.first_layer, facts.end_layer}};
  const std::vector<Bytes> all = gather(communicator, to_bytes(mine));
  for (size_t r = 1; r < all.size(); ++r) {
    const json theirs = from_bytes(all[r]);
    for (const auto& [key, value] : mine.items()) {
      const bool may_differ = key == "room" || key == "math" || key == "layers";
      if (may_differ || theirs.at(key) == value) continue;
      throw UsageError(
          "the ranks do not agree: " + key + " is " + value.get<std::string>() +
          " on rank 0 (host " + communicator.host(0) + ") and " +
          theirs.at(key).get<std::string>() + " on rank " + std::to_string(r) + " (host " +
          communicator.host(static_cast<int>(r)) +
          "); start the same program with the same options and model file on every node");
    }
    math.push_back({theirs.at("math").get<std::string>(), theirs.at("layers").at(0).get<int>(),
                    theirs.at("layers").at(1).get<int>()});
    const std::vector<int64_t> room = room_of(theirs);
    for (size_t i = 0; i < least.size(); ++i) least[i] = std::min(least[i], room.at(i));
  }
  const json agreed =
      from_bytes(broadcast(communicator, to_bytes({{"room", least}, {"math", together(math)}})));
  least = room_of(agreed);
  return {least.at(0),       least.at(1),  least.at(2), least.at(3),
          agreed.at("math"), -least.at(4), least.at(5)};
}

PageSharing agree(Communicator& communicator, const PageSharing& mine) {
  PageSharing all = mine;
  const std::vector<Bytes> told =
      gather(communicator, to_bytes({{"why_not", mine.why_not}, {"pages", mine.table_pages}}));
  for (const Bytes& bytes : told) {
    const json rank = from_bytes(bytes);
    if (all.why_not.empty()) all.why_not = rank.at("why_not").get<std::string>();
    all.table_pages = std::min(all.table_pages, rank.at("pages").get<int64_t>());
  }
  const json agreed = from_bytes(
      broadcast(communicator, to_bytes({{"why_not", all.why_not}, {"pages", all.table_pages}})));
  return {agreed.at("why_not").get<std::string>(), agreed.at("pages").get<int64_t>()};
}

}  // namespace headrace
