// An IoQueue that fails or dawdles where a test wants it to, and keeps account of what was asked.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/error.h"
#include "engine/io/io_queue.h"

namespace headrace::test {

class FaultQueue final : public IoQueue {
 public:
  struct Faults {
    uint64_t failing = 0;                // the n-th transfer, counted from 1, is not done but fails
    std::chrono::microseconds delay{0};  // no transfer is finished sooner than this
    // finished() does not tell how it is, but by turns says no, and waits and says yes.
    bool hesitates = false;
  };
  struct Asked {
    bool is_write;
    uint64_t offset, bytes;
  };

  FaultQueue(std::unique_ptr<IoQueue> queue, Faults faults)
      : queue_(std::move(queue)), faults_(faults) {}

  IoTicket read(const File& file, uint64_t offset, std::span<std::byte> memory) override {
    return start({false, offset, memory.size()}, file,
                 [&] { return queue_->read(file, offset, memory); });
  }
  IoTicket write(const File& file, uint64_t offset, std::span<const std::byte> memory) override {
    return start({true, offset, memory.size()}, file,
                 [&] { return queue_->write(file, offset, memory); });
  }

  void wait(IoTicket ticket) override {
    const Started& started = started_.at(ticket);
    std::this_thread::sleep_until(started.earliest_end);
    if (!started.failure.empty()) throw IoError(started.failure);
    queue_->wait(started.inner);
  }
  bool finished(IoTicket ticket) override {
    const Started& started = started_.at(ticket);
    if (faults_.hesitates) {
      if (says_no_ = !says_no_; says_no_) return false;
      wait(ticket);
      return true;
    }
    if (std::chrono::steady_clock::now() < started.earliest_end) return false;
    return !started.failure.empty() || queue_->finished(started.inner);
  }

  void register_memory(std::span<std::byte> memory) override { queue_->register_memory(memory); }
  void register_file(const File& file) override { queue_->register_file(file); }
  int depth() const override { return queue_->depth(); }
  std::string description() const override { return queue_->description() + " with faults"; }

  // In the order of submission.
  const std::vector<Asked>& asked() const { return asked_; }

 private:
  struct Started {
    IoTicket inner = 0;
    std::chrono::steady_clock::time_point earliest_end;
    std::string failure;
  };

  template <typename Submit>
  IoTicket start(const Asked& asked, const File& file, const Submit& submit) {
    asked_.push_back(asked);
    const IoTicket ticket = asked_.size();
    Started& started = started_[ticket];
    started.earliest_end = std::chrono::steady_clock::now() + faults_.delay;
    if (ticket == faults_.failing) {
      started.failure = file.path() + " at offset " + std::to_string(asked.offset) +
                        ": Input/output error (made by a test)";
    } else {
      started.inner = submit();
    }
    return ticket;
  }

  std::unique_ptr<IoQueue> queue_;
  Faults faults_;
  std::vector<Asked> asked_;
  bool says_no_ = false;
  std::map<IoTicket, Started> started_;
};

}  // namespace headrace::test
