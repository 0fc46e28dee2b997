// What both kinds of queue keep of a transfer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "engine/error.h"
#include "engine/io/io_queue.h"

namespace headrace::io_detail {

struct Transfer {
  const File* file = nullptr;
  uint64_t offset = 0;
  std::byte* memory = nullptr;
  size_t bytes = 0;
  bool is_write = false;

  size_t moved = 0;
  bool done = false;
  int error = 0;  // errno; 0 with moved < bytes: the file ended
};

// Throws IoError if the transfer failed.
void check(const Transfer& transfer);

// The transfers from the oldest that is not done to the newest, by ticket.
class TransferLog {
 public:
  IoTicket add(const Transfer& transfer) {
    log_.push_back(transfer);
    return first_ + log_.size() - 1;
  }
  // Null if it is done without error and forgotten.
  Transfer* find(IoTicket ticket) { return ticket < first_ ? nullptr : &log_.at(ticket - first_); }
  // Drops what is done without error from the old end.
  void forget_done() {
    while (!log_.empty() && log_.front().done && log_.front().moved == log_.front().bytes) {
      log_.pop_front();
      ++first_;
    }
  }

 private:
  std::deque<Transfer> log_;
  IoTicket first_ = 1;
};

}  // namespace headrace::io_detail
