#include "comm/local_transport.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "comm/error.h"

namespace headrace {
namespace {

constexpr int kHiddenChannel = 0;  // beside the values of Channel

}  // namespace

struct LocalTransport::Hub {
  int ranks;
  std::chrono::duration<double> timeout;
  std::string host = "localhost";
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::tuple<int, int, int>, std::deque<Bytes>> queues;  // (from, to, channel)

  void push(int from, int to, int channel, Bytes message) {
    const std::lock_guard lock(mutex);
    queues[{from, to, channel}].push_back(std::move(message));
    changed.notify_all();
  }

  Bytes pop(int from, int to, int channel) {
    std::unique_lock lock(mutex);
    auto& queue = queues[{from, to, channel}];
    if (!changed.wait_for(lock, timeout, [&] { return !queue.empty(); })) {
      throw PeerLost("rank " + std::to_string(from) + " (host " + host + ") sent nothing in time");
    }
    Bytes message = std::move(queue.front());
    queue.pop_front();
    return message;
  }
};

std::vector<std::unique_ptr<LocalTransport>> LocalTransport::create(
    int ranks, std::chrono::duration<double> timeout) {
  auto hub = std::make_shared<Hub>();
  hub->ranks = ranks;
  hub->timeout = timeout;
  std::vector<std::unique_ptr<LocalTransport>> all;
  for (int r = 0; r < ranks; ++r) all.push_back(std::make_unique<LocalTransport>(hub, r));
  return all;
}

LocalTransport::LocalTransport(std::shared_ptr<Hub> hub, int rank)
    : hub_(std::move(hub)), rank_(rank) {}
LocalTransport::~LocalTransport() = default;

void LocalTransport::set_buffers(const std::vector<HiddenBuffer>& buffers, bool) {
  free_ = buffers;
}

int LocalTransport::size() const { return hub_->ranks; }
const std::string& LocalTransport::host(int) const { return hub_->host; }

void LocalTransport::send(int to, Channel channel, Bytes message) {
  hub_->push(rank_, to, static_cast<int>(channel), std::move(message));
}

Bytes LocalTransport::receive(int from, Channel channel) {
  return hub_->pop(from, rank_, static_cast<int>(channel));
}

std::optional<Bytes> LocalTransport::try_receive(int from, Channel channel) {
  {
    const std::lock_guard lock(hub_->mutex);
    if (hub_->queues[{from, rank_, static_cast<int>(channel)}].empty()) return std::nullopt;
  }
  return receive(from, channel);
}

void LocalTransport::set_waiting(bool waiting) {
  if (waiting) waits_since_ = std::chrono::steady_clock::now();
}

void LocalTransport::check_peers() {
  if (std::chrono::steady_clock::now() - waits_since_ < hub_->timeout) return;
  throw PeerLost("no rank (host " + hub_->host + ") did anything in time");
}

LocalTransport::HiddenBuffer LocalTransport::take() {
  if (free_.empty()) throw std::logic_error("a step holds more link buffers than there are");
  const HiddenBuffer buffer = free_.back();
  free_.pop_back();
  return buffer;
}

LocalTransport::HiddenBuffer LocalTransport::receive(size_t bytes) {
  const Bytes message = hub_->pop(rank_ - 1, rank_, kHiddenChannel);
  if (message.size() != bytes)
    throw std::logic_error("hidden states of another size than the step says");
  const HiddenBuffer buffer = take();
  std::memcpy(buffer.data(), message.data(), bytes);
  return buffer;
}

void LocalTransport::send(HiddenBuffer buffer, size_t bytes) {
  hub_->push(rank_, rank_ + 1, kHiddenChannel, Bytes(buffer.begin(), buffer.begin() + bytes));
  recycle(buffer);
}

void LocalTransport::recycle(HiddenBuffer buffer) { free_.push_back(buffer); }

}  // namespace headrace
