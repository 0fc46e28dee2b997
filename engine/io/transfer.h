// What both kinds of queue keep of a transfer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "engine/io/io_queue.h"

namespace headrace::io_detail {

// The most that one call of the system moves (Linux cuts at 2 GiB less a page).
inline constexpr size_t kMaxPiece = size_t{1} << 30;

struct Transfer {
  const File* file = nullptr;
  uint64_t offset = 0;
  std::byte* memory = nullptr;
  size_t bytes = 0;
  bool is_write = false;

  size_t moved = 0;  // where the next piece begins; aligned until the transfer has ended
  bool done = false;
  std::string failure = {};  // why it failed; empty if it did not

  std::byte* next_memory() const { return memory + moved; }
  uint64_t next_offset() const { return offset + moved; }
  size_t next_bytes() const { return bytes - moved < kMaxPiece ? bytes - moved : kMaxPiece; }
};

// Throws std::logic_error if a transfer is not aligned or writes beyond what its file reserved.
void check_request(const Transfer& transfer);

// Takes note of what the system returned for the next piece: bytes, or a negated errno. True: there
// is more to move, go on. False: the transfer is done, or has failed.
bool advance(Transfer& transfer, int64_t result);

// Moves everything with pread or pwrite; `done` is left alone.
void move_all(Transfer& transfer);

// The transfers of a queue by ticket: those from the oldest that is under way to the newest, and
// the failed ones.
class TransferLog {
 public:
  IoTicket add(const Transfer& transfer) {
    log_.push_back(transfer);
    return first_ + log_.size() - 1;
  }
  // Null if it is done without failure and forgotten. Throws std::out_of_range for a ticket that
  // was never given out.
  Transfer* find(IoTicket ticket) {
    if (ticket >= first_) return &log_.at(ticket - first_);
    const auto failed = failed_.find(ticket);
    return failed == failed_.end() ? nullptr : &failed->second;
  }
  // Drops what is done from the old end.
  void forget_done() {
    for (; !log_.empty() && log_.front().done; log_.pop_front(), ++first_) {
      if (!log_.front().failure.empty()) failed_.emplace(first_, std::move(log_.front()));
    }
  }

 private:
  std::deque<Transfer> log_;
  std::map<IoTicket, Transfer> failed_;
  IoTicket first_ = 1;
};

}  // namespace headrace::io_detail
