#include "runtime/doctor/link_check.h"

#include <algorithm>
#include <chrono>

namespace headrace {
namespace {

constexpr size_t kSmall = 8, kLarge = 4 << 20;
constexpr int kEchoes = 100, kLargeMessages = 16;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void echo(Communicator& ranks, int to) {
  ranks.send(to, Channel::kStep, Bytes(kSmall));
  ranks.receive(to, Channel::kTokens);
}

LinkFacts measure(Communicator& ranks, int to) {
  LinkFacts link;
  echo(ranks, to);  // makes the connection
  auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kEchoes; ++i) echo(ranks, to);
  link.latency_s = seconds_since(begin) / (2 * kEchoes);

  begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kLargeMessages; ++i) ranks.send(to, Channel::kStep, Bytes(kLarge));
  ranks.receive(to, Channel::kTokens);
  link.rate = static_cast<double>(kLarge) * kLargeMessages /
              std::max(1e-9, seconds_since(begin) - link.latency_s);
  return link;
}

void answer(Communicator& ranks, int from) {
  for (int i = 0; i < 1 + kEchoes; ++i) {
    ranks.receive(from, Channel::kStep);
    ranks.send(from, Channel::kTokens, Bytes(kSmall));
  }
  for (int i = 0; i < kLargeMessages; ++i) ranks.receive(from, Channel::kStep);
  ranks.send(from, Channel::kTokens, Bytes(kSmall));
}

}  // namespace

std::optional<LinkFacts> check_links(Communicator& ranks) {
  // A rank answers the one before it first, so pairs take turns along the pipeline.
  if (ranks.rank() > 0) answer(ranks, ranks.rank() - 1);
  if (ranks.rank() + 1 == ranks.size()) return std::nullopt;
  return measure(ranks, ranks.rank() + 1);
}

}  // namespace headrace
