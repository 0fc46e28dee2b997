// What libheadrace_cuda.so has of this room: see comm/device_wire.h.

#include "comm/nccl/nccl_wires.h"

extern "C" headrace::DeviceWires* headrace_open_device_wires() {
  return new headrace::NcclWires(headrace::open_nccl(headrace::kNcclLibrary),
                                 headrace::make_cuda_stream);
}
