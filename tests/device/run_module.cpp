// A module whose devices and wires are the test program's.
#include "comm/device_wire.h"
#include "engine/device/device_module.h"
#include "headrace/version.h"

extern "C" headrace::DeviceModule* headrace_test_open_module();
extern "C" headrace::DeviceWires* headrace_test_open_wires();

extern "C" const char* headrace_module_version() { return HEADRACE_VERSION; }
extern "C" headrace::DeviceModule* headrace_open_module() { return headrace_test_open_module(); }
extern "C" headrace::DeviceWires* headrace_open_device_wires() {
  return headrace_test_open_wires();
}
