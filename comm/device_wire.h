// Hidden states from the memory of one rank's device to that of the next rank's, past both hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace headrace {

// One end of a hop between two neighbouring ranks; data go one way. A hop has a library's
// communicator of its own, so nothing has to be grouped: the sends of one end meet the receives of
// the other in order.
//
// Nothing waits: what is begun goes on beside the caller, which looks again (comm/backoff.h) and
// watches the other ranks meanwhile, for a peer that is stopped is no error of the library's. Every
// call but abort() throws when the library has found that something went wrong, with its words:
// CommError while it is set up, afterwards PeerLost, or CommError where no peer can be at fault.
// Then only abort() is left. One thread uses it.
class DeviceWire {
 public:
  virtual ~DeviceWire() = default;  // as abort()

  // Both ends are there, and something has gone from one to the other. From then on the calls below
  // may be used.
  virtual bool connected() = 0;

  // Begins a transfer after those before it. The memory, on the device that the wire was made for,
  // must be ready, and stay until the transfer is completed; it must be taken() before the next one
  // begins.
  virtual void send(const std::byte* device, size_t bytes) = 0;
  virtual void receive(std::byte* device, size_t bytes) = 0;
  // The library has the last transfer, so that it goes on by itself. Does not depend on the other
  // end.
  virtual bool taken() = 0;
  // How many transfers are done, of those that were begun.
  virtual uint64_t completed() = 0;

  // Nothing will be sent any more, and all is completed: takes the wire down; true when that is
  // done, at both ends.
  virtual bool close() = 0;
  // Ends what is under way on the device at once, whatever the other end does. Memory of transfers
  // may go afterwards. Idempotent, does not throw; takes up to a second.
  virtual void abort() = 0;
};

enum class WireEnd { kSends, kReceives };

// The library that makes wires. One thread uses it; it outlives its wires.
class DeviceWires {
 public:
  virtual ~DeviceWires() = default;

  // "NCCL 2.28.9". Ranks whose versions differ cannot be sure to understand each other.
  virtual std::string version() = 0;
  // What both ends of a new hop must be given. Throws CommError.
  virtual Bytes make_id() = 0;
  // Begins to make one end of the hop, for memory of this device. Throws CommError.
  virtual std::unique_ptr<DeviceWire> connect(int device, const Bytes& id, WireEnd end) = 0;
};

// Device memory that the library may take for one end of a hop.
inline constexpr uint64_t kWireBytes = uint64_t{64} << 20;

// What a module exports with C linkage, if it has been built with NCCL's header.
//   DeviceWires* headrace_open_device_wires();    the caller's to delete
inline constexpr char kOpenDeviceWires[] = "headrace_open_device_wires";

// NCCL, by way of the module `file`, which must be of this program's build. Opens the library when
// it is called. Throws CommError: there is no module, or no NCCL, or one that is too old.
std::unique_ptr<DeviceWires> open_device_wires(const std::string& file);

}  // namespace headrace
