#include "runtime/plan/agreement.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/json_bytes.h"

namespace headrace {
namespace {

using nlohmann::json;

}  // namespace

int64_t agree(Communicator& communicator, const RankFacts& facts) {
  const json mine = {{"headrace version", facts.version},
                     {"model fingerprint", facts.fingerprint},
                     {"numerics", facts.numerics},
                     {"schedule", facts.schedule},
                     {"kv_pages", facts.kv_pages}};
  int64_t pages = facts.kv_pages;
  const std::vector<Bytes> all = gather(communicator, to_bytes(mine));
  for (size_t r = 1; r < all.size(); ++r) {
    const json theirs = from_bytes(all[r]);
    for (const auto& [key, value] : mine.items()) {
      if (key == "kv_pages" || theirs.at(key) == value) continue;
      throw UsageError(
          "the ranks do not agree: " + key + " is " + value.get<std::string>() +
          " on rank 0 (host " + communicator.host(0) + ") and " +
          theirs.at(key).get<std::string>() + " on rank " + std::to_string(r) + " (host " +
          communicator.host(static_cast<int>(r)) +
          "); start the same program with the same options and model file on every node");
    }
    pages = std::min(pages, theirs.at("kv_pages").get<int64_t>());
  }
  return from_bytes(broadcast(communicator, to_bytes({{"kv_pages", pages}})))
      .at("kv_pages")
      .get<int64_t>();
}

}  // namespace headrace
