#include "comm/device_link.h"

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "comm/backoff.h"
#include "comm/error.h"

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;

// That may be added to a wait, as a share of it: as for hidden states over MPI.
constexpr double kLateness = 1.0 / 320;
constexpr char kWhat[] = "hidden states";
constexpr auto kCloseTime = std::chrono::seconds(10);

}  // namespace

DeviceLink::DeviceLink(Communicator& ranks, ActivationLink& host,
                       std::unique_ptr<DeviceWire> previous, std::unique_ptr<DeviceWire> next,
                       std::vector<std::byte*> memory)
    : ranks_(ranks),
      host_(host),
      previous_{std::move(previous), ranks.rank() - 1, "from"},
      next_{std::move(next), ranks.rank() + 1, "to"},
      memory_(std::move(memory)) {}

DeviceLink::~DeviceLink() {
  for (Side* const side : {&previous_, &next_}) {
    if (side->wire) side->wire->abort();
  }
}

template <typename Call>
auto DeviceLink::on(Side& side, Call call) {
  const auto what = [&](const std::exception& e) {
    return std::string("hidden states ") + side.direction + " rank " + std::to_string(side.rank) +
           " (host " + ranks_.host(side.rank) + "): " + e.what();
  };
  try {
    return call(*side.wire);
  } catch (const PeerLost& e) {
    throw PeerLost(what(e));
  } catch (const CommError& e) {
    throw CommError(what(e));
  }
}

template <typename Ready>
void DeviceLink::wait(Ready ready) {
  if (ready()) return;
  Communicator::Waiting waiting(ranks_);
  Backoff backoff(Clock::now());
  while (!ready()) {
    waiting.check();
    const auto pause = backoff.pause(Clock::now(), kLateness);
    if (pause > Clock::duration::zero()) {
      std::this_thread::sleep_for(pause);
    } else {
      std::this_thread::yield();
    }
  }
}

void DeviceLink::turn() {
  const auto completed = [](DeviceWire& wire) { return wire.completed(); };
  if (previous_.wire) received_ = on(previous_, completed);
  if (!next_.wire) return;
  for (const uint64_t done = on(next_, completed); sent_ < done; ++sent_) {
    const Sending& done_with = sending_.front();
    ranks_.note({kWhat, true, next_.rank, done_with.bytes, done_with.begin, Clock::now()});
    host_.recycle(done_with.buffer);
    sending_.pop_front();
  }
}

void DeviceLink::set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives) {
  if (buffers.size() != memory_.size()) throw std::logic_error("not as many buffers as memory");
  buffers_ = buffers;
  host_.set_buffers(buffers, receives && !previous_.wire);
}

DeviceLink::HiddenBuffer DeviceLink::take() {
  wait([this] {
    turn();
    return sending_.size() < buffers_.size();
  });
  return host_.take();
}

DeviceLink::HiddenBuffer DeviceLink::receive(size_t bytes) {
  if (!previous_.wire) {
    wait([this] {  // the host link has one to receive into
      turn();
      return sending_.size() < buffers_.size();
    });
    return host_.receive(bytes);
  }
  const HiddenBuffer buffer = take();
  if (bytes > buffer.size()) throw std::logic_error("hidden states larger than a buffer");
  std::byte* const to = memory_[index_of(buffer)];
  on(previous_, [&](DeviceWire& wire) { wire.receive(to, bytes); });
  ++previous_.begun;
  auto last_look = Clock::now();
  wait([&, this] {
    const auto now = Clock::now();
    const bool taken = on(previous_, [](DeviceWire& wire) { return wire.taken(); });
    turn();
    if (taken && received_ == previous_.begun) return true;
    last_look = now;
    return false;
  });
  ranks_.note({kWhat, false, previous_.rank, bytes, last_look, Clock::now()});
  return buffer;
}

void DeviceLink::send(HiddenBuffer buffer, size_t bytes) {
  if (!next_.wire) return host_.send(buffer, bytes);
  const std::byte* const from = memory_[index_of(buffer)];
  on(next_, [&](DeviceWire& wire) { wire.send(from, bytes); });
  ++next_.begun;
  sending_.push_back({buffer, bytes, Clock::now()});
  wait([this] { return on(next_, [](DeviceWire& wire) { return wire.taken(); }); });
}

void DeviceLink::recycle(HiddenBuffer buffer) { host_.recycle(buffer); }

ActivationLink::OnDevice DeviceLink::on_device(HiddenBuffer buffer) const {
  return {memory_[index_of(buffer)], previous_.wire != nullptr, next_.wire != nullptr};
}

void DeviceLink::close() {
  wait([this] {
    turn();
    return sending_.empty();
  });
  const auto end = Clock::now() + kCloseTime;
  wait([&, this] {
    const bool closed = is_closed(previous_), next_closed = is_closed(next_);
    return (closed && next_closed) || Clock::now() > end;
  });
}

// A wire that cannot be taken down as it should be is no reason to fail: all has been passed.
bool DeviceLink::is_closed(Side& side) {
  if (!side.wire) return true;
  try {
    return side.wire->close();
  } catch (const std::runtime_error&) {
    side.wire->abort();
    side.wire.reset();
    return true;
  }
}

size_t DeviceLink::index_of(HiddenBuffer buffer) const {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].data() == buffer.data()) return i;
  }
  throw std::logic_error("not a buffer of this link");
}

}  // namespace headrace
