// Wires over NCCL.
#pragma once

#include <memory>
#include <string>

#include "comm/device_wire.h"
#include "comm/nccl/nccl_library.h"
#include "comm/nccl/wire_stream.h"

namespace headrace {

// Each hop has a communicator of two ranks that does not block: what NCCL begins it goes on with in
// threads of its own, and is asked how far that is.
class NcclWires final : public DeviceWires {
 public:
  NcclWires(const NcclFunctions& nccl, MakeWireStream make_stream)
      : nccl_(nccl), make_stream_(std::move(make_stream)) {}

  std::string version() override;
  Bytes make_id() override;
  std::unique_ptr<DeviceWire> connect(int device, const Bytes& id, WireEnd end) override;

 private:
  const NcclFunctions nccl_;
  const MakeWireStream make_stream_;
};

}  // namespace headrace
