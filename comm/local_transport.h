// Communicator and ActivationLink between threads of one process: for a run on one rank, and for
// tests of pipelines without a launcher.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "comm/activation_link.h"
#include "comm/communicator.h"

namespace headrace {

class LocalTransport final : public Communicator, public ActivationLink {
 public:
  struct Hub;

  // `ranks` transports that talk to each other, one per thread. A wait longer than the timeout
  // throws PeerLost.
  static std::vector<std::unique_ptr<LocalTransport>> create(
      int ranks, std::chrono::duration<double> timeout = std::chrono::seconds(60));

  LocalTransport(std::shared_ptr<Hub> hub, int rank);
  ~LocalTransport() override;

  int rank() const override { return rank_; }
  int size() const override;
  const std::string& host(int rank) const override;
  std::string library() const override { return "none: one process"; }
  void send(int to, Channel channel, Bytes message) override;
  Bytes receive(int from, Channel channel) override;
  std::optional<Bytes> try_receive(int from, Channel channel) override;
  void watch_progress(std::function<uint64_t()>) override {}
  void finish() override {}
  void halt() override {}
  void abort(int) override {}

  void set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives) override;
  HiddenBuffer take() override;
  HiddenBuffer receive(size_t bytes) override;
  void send(HiddenBuffer buffer, size_t bytes) override;
  void recycle(HiddenBuffer buffer) override;

 protected:
  void set_idle(std::chrono::minutes) override {}
  void set_busy() override {}
  void set_waiting(bool waiting) override;
  void check_peers() override;

 private:
  std::shared_ptr<Hub> hub_;
  int rank_;
  std::chrono::steady_clock::time_point waits_since_;
  std::vector<HiddenBuffer> free_;
};

}  // namespace headrace
