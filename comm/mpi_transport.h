// Communicator and ActivationLink over MPI.
//
// One progress thread makes all MPI calls after construction that can take time: it drives sends
// and posted receives on, collects messages, and exchanges signs of life, so transfers go on while
// the caller computes. It polls with a back-off (comm/backoff.h) because Open MPI's own waiting
// burns a core.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "comm/activation_link.h"
#include "comm/communicator.h"

namespace headrace {

class MpiTransport final : public Communicator, public ActivationLink {
 public:
  // Must not return: says why and ends the process. Called from a thread of its own.
  using Stuck = std::function<void(const std::string& why)>;

  // Initialises MPI. `peer_timeout_s`: seconds without a sign of life after which a rank is lost.
  // `stuck`, if not empty, is called when MPI itself does not come up or end within that time,
  // which no exception could say. Throws CommError, PeerLost.
  explicit MpiTransport(double peer_timeout_s, Stuck stuck = {});
  ~MpiTransport() override;

  // When it is set on one rank, it becomes so on all within a second or so. Must outlive the
  // transport.
  void share(std::atomic<bool>& interrupted);

  int rank() const override;
  int size() const override;
  const std::string& host(int rank) const override;
  std::string library() const override;
  void send(int to, Channel channel, Bytes message) override;
  Bytes receive(int from, Channel channel) override;
  std::optional<Bytes> try_receive(int from, Channel channel) override;
  void watch_progress(std::function<uint64_t()> progress) override;
  void observe(Observer observer) override;
  void note(const Transfer& transfer) override;
  void finish() override;
  void halt() override;
  void abort(int exit_code) override;

  void set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives) override;
  HiddenBuffer take() override;
  HiddenBuffer receive(size_t bytes) override;
  void send(HiddenBuffer buffer, size_t bytes) override;
  void recycle(HiddenBuffer buffer) override;

 protected:
  void set_idle(std::chrono::minutes at_most) override;
  void set_busy() override;
  void set_waiting(bool waiting) override;
  void check_peers() override;

 private:
  struct Impl;
  const std::chrono::duration<double> timeout_;
  const Stuck stuck_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headrace
