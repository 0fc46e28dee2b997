#include "comm/nccl/nccl_library.h"

#include <dlfcn.h>

#include "comm/error.h"

namespace headrace {
namespace {

constexpr int kLeastVersion = NCCL_VERSION(2, 14, 0);

template <typename Function>
void find(void* library, const char* name, Function& function) {
  void* const symbol = dlsym(library, name);
  if (!symbol) throw CommError(std::string("NCCL has no ") + name);
  function = reinterpret_cast<Function>(symbol);
}

}  // namespace

std::string nccl_version_text(int version) {
  const bool old = version < 10000;
  const int major = version / (old ? 1000 : 10000);
  const int minor = version / 100 % (old ? 10 : 100);
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(version % 100);
}

NcclFunctions open_nccl(const std::string& file) {
  // Not closed again: it has threads of its own.
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) throw CommError("opening " + file + " failed: " + dlerror());
  NcclFunctions nccl{};
  find(library, "ncclGetVersion", nccl.get_version);
  int version = 0;
  if (nccl.get_version(&version) != ncclSuccess || version < kLeastVersion) {
    throw CommError("NCCL " + nccl_version_text(version) + " is too old: 2.14 is needed");
  }
  find(library, "ncclGetUniqueId", nccl.get_unique_id);
  find(library, "ncclCommInitRankConfig", nccl.init_rank);
  find(library, "ncclCommGetAsyncError", nccl.get_async_error);
  find(library, "ncclCommFinalize", nccl.finalize);
  find(library, "ncclCommDestroy", nccl.destroy);
  find(library, "ncclCommAbort", nccl.abort);
  find(library, "ncclSend", nccl.send);
  find(library, "ncclRecv", nccl.receive);
  find(library, "ncclGetErrorString", nccl.error_string);
  find(library, "ncclGetLastError", nccl.last_error);
  return nccl;
}

}  // namespace headrace
