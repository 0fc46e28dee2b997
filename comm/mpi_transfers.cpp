#include "comm/mpi_transfers.h"

#include <algorithm>
#include <stdexcept>

namespace headrace {
namespace {

// Sends that MPI has at once. Thousands fill its queues, and each call then gives the core away: a
// turn would take seconds, with the mutex held.
constexpr size_t kMostSending = 32;

}  // namespace

bool MpiTransfers::turn() {
  bool moved = start_sends();
  moved |= end_sends();
  probe();
  moved |= collect_messages();
  moved |= collect_hidden();
  last_turn_ = Clock::now();
  return moved;
}

bool MpiTransfers::start_sends() {
  bool moved = false;
  while (!queued_.empty() && sending_.size() < kMostSending) {
    sending_.push_back(std::move(queued_.front()));
    queued_.pop_front();
    Sending& op = sending_.back();
    const bool hidden = op.buffer >= 0;
    const void* data = hidden ? buffers_[op.buffer].memory.data() : op.message.data();
    check_mpi(MPI_Isend(data, static_cast<int>(op.bytes), MPI_BYTE, op.to, op.tag,
                        hidden ? MPI_COMM_WORLD : messages_, &op.request),
              "send");
    moved = true;
  }
  return moved;
}

bool MpiTransfers::end_sends() {
  bool moved = false;
  for (auto it = sending_.begin(); it != sending_.end();) {
    if (!is_done(it->request)) {
      ++it;
      continue;
    }
    tell_observer(true, it->to, it->tag, it->bytes, it->begin);
    if (it->buffer >= 0) release(it->buffer);
    it = sending_.erase(it);
    moved = true;
  }
  return moved;
}

// Starts to receive the messages that have come. A probe looks first and drives transfers on after
// that, so what it finds out only the next one tells.
void MpiTransfers::probe() {
  for (int misses = 0; misses < 2;) {
    int flag = 0, bytes = 0;
    MPI_Message message;
    MPI_Status status;
    check_mpi(MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, messages_, &flag, &message, &status),
              "probe");
    if (!flag) {
      ++misses;
      continue;
    }
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    arriving_.push_back(
        {status.MPI_SOURCE, status.MPI_TAG, Bytes(static_cast<size_t>(bytes)), last_turn_});
    check_mpi(MPI_Imrecv(arriving_.back().message.data(), bytes, MPI_BYTE, &message,
                         &arriving_.back().request),
              "receive");
  }
}

// In order of arrival per (rank, channel): a later one waits for an earlier one.
bool MpiTransfers::collect_messages() {
  bool moved = false;
  for (auto it = arriving_.begin(); it != arriving_.end();) {
    const bool earlier = std::any_of(arriving_.begin(), it, [&](const Arriving& a) {
      return a.from == it->from && a.tag == it->tag;
    });
    if (earlier || !is_done(it->request)) {
      ++it;
      continue;
    }
    tell_observer(false, it->from, it->tag, it->message.size(), it->begin);
    inbox_[{it->from, it->tag}].push_back(std::move(it->message));
    it = arriving_.erase(it);
    moved = true;
  }
  return moved;
}

bool MpiTransfers::collect_hidden() {
  bool moved = false;
  while (!posted_.empty()) {
    const int index = posted_.front();
    MPI_Status status;
    if (!is_done(buffers_[index].receive, &status)) break;
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    posted_.pop_front();
    tell_observer(false, rank_ - 1, kHiddenTag, static_cast<size_t>(bytes), last_turn_);
    full_.emplace_back(index, static_cast<size_t>(bytes));
    moved = true;
  }
  return moved;
}

void MpiTransfers::tell_observer(bool sent, int peer, int tag, size_t bytes,
                                 Clock::time_point begin) const {
  if (tag == static_cast<int>(Channel::kSetup)) return;
  const char* what = tag == kHiddenTag                           ? "hidden states"
                     : tag == static_cast<int>(Channel::kTokens) ? "tokens"
                                                                 : "step";
  note({what, sent, peer, bytes, begin, Clock::now()});
}

void MpiTransfers::cancel() {
  for (const int index : posted_) {
    MPI_Cancel(&buffers_[index].receive);
    MPI_Request_free(&buffers_[index].receive);
  }
  posted_.clear();
}

void MpiTransfers::send(int to, Channel channel, Bytes message) {
  const size_t bytes = message.size();
  queued_.push_back({to, static_cast<int>(channel), std::move(message), -1, bytes});
}

bool MpiTransfers::has(int from, Channel channel) const {
  const auto found = inbox_.find({from, static_cast<int>(channel)});
  return found != inbox_.end() && !found->second.empty();
}

std::optional<Bytes> MpiTransfers::take(int from, Channel channel) {
  if (!has(from, channel)) return std::nullopt;
  std::deque<Bytes>& queue = inbox_[{from, static_cast<int>(channel)}];
  Bytes message = std::move(queue.front());
  queue.pop_front();
  return message;
}

void MpiTransfers::set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives) {
  receives_ = receives;
  for (const HiddenBuffer& memory : buffers) {
    buffers_.push_back({memory, MPI_REQUEST_NULL});
    release(static_cast<int>(buffers_.size()) - 1);
  }
}

MpiTransfers::HiddenBuffer MpiTransfers::take_free() {
  const int index = free_.front();
  free_.pop_front();
  return buffers_[index].memory;
}

MpiTransfers::HiddenBuffer MpiTransfers::take_full(size_t bytes) {
  const auto [index, got] = full_.front();
  full_.pop_front();
  if (got != bytes) throw std::logic_error("hidden states of another size than the step says");
  return buffers_[index].memory;
}

void MpiTransfers::send(HiddenBuffer buffer, size_t bytes) {
  queued_.push_back({rank_ + 1, kHiddenTag, {}, index_of(buffer), bytes});
}

// A buffer that nobody uses: a receive is posted into it, or take() finds it on the free list.
void MpiTransfers::release(int buffer) {
  if (!receives_) {
    free_.push_back(buffer);
    return;
  }
  Buffer& b = buffers_[buffer];
  posted_.push_back(buffer);
  check_mpi(MPI_Irecv(b.memory.data(), static_cast<int>(b.memory.size()), MPI_BYTE, rank_ - 1,
                      kHiddenTag, MPI_COMM_WORLD, &b.receive),
            "receive");
}

int MpiTransfers::index_of(HiddenBuffer buffer) const {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].memory.data() == buffer.data()) return static_cast<int>(i);
  }
  throw std::logic_error("not a buffer of this link");
}

}  // namespace headrace
