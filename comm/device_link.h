// Hidden states that stay on devices: from the previous stage, to the next one, or both.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <vector>

#include "comm/activation_link.h"
#include "comm/communicator.h"
#include "comm/device_wire.h"

namespace headrace {

// A side with a wire passes hidden states from device to device; the other one, if there is a rank,
// is the host link's. Either way the buffers go round through the host link, which lends those that
// are free.
//
// A wire's receive begins when the stage asks for the buffer, for its size is known then, and a
// buffer that is sent is free again when the transfer is completed. Every wait looks at both wires
// and at the other ranks; what a wire says of a lost peer is told with its rank and host.
class DeviceLink final : public ActivationLink {
 public:
  // One of the wires may be null; both are connected. `ranks` and `host` must outlive the link.
  // `memory`: of the device, one piece for each buffer and as large; must outlive the link.
  DeviceLink(Communicator& ranks, ActivationLink& host, std::unique_ptr<DeviceWire> previous,
             std::unique_ptr<DeviceWire> next, std::vector<std::byte*> memory);
  // Ends what is under way, so that its memory may go.
  ~DeviceLink() override;

  // `receives` as for the host link alone: there is a previous stage.
  void set_buffers(const std::vector<HiddenBuffer>& buffers, bool receives) override;
  HiddenBuffer take() override;
  HiddenBuffer receive(size_t bytes) override;
  void send(HiddenBuffer buffer, size_t bytes) override;
  void recycle(HiddenBuffer buffer) override;
  OnDevice on_device(HiddenBuffer buffer) const override;

  // When nothing is under way any more, all ranks call it: takes the wires down. Throws PeerLost.
  void close();

 private:
  struct Side {
    std::unique_ptr<DeviceWire> wire;
    int rank = 0;           // the neighbour
    const char* direction;  // "from", "to"
    uint64_t begun = 0;     // transfers
  };
  // What `call` gives; it is one of the side's wire.
  template <typename Call>
  auto on(Side& side, Call call);
  // Until `ready()`, which is asked often.
  template <typename Ready>
  void wait(Ready ready);
  // Looks at both wires; buffers that have been sent are free.
  void turn();
  bool is_closed(Side& side);
  size_t index_of(HiddenBuffer buffer) const;

  Communicator& ranks_;
  ActivationLink& host_;
  Side previous_, next_;
  std::vector<std::byte*> memory_;
  std::vector<HiddenBuffer> buffers_;
  struct Sending {
    HiddenBuffer buffer;
    size_t bytes;
    std::chrono::steady_clock::time_point begin;
  };
  std::deque<Sending> sending_;       // by the wire, in order
  uint64_t received_ = 0, sent_ = 0;  // transfers that are completed
};

}  // namespace headrace
