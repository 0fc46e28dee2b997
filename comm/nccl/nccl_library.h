// NCCL's functions, from the library that is opened when a wire is wanted: the module also runs
// where there is none.
#pragma once

#include <nccl.h>

#include <string>

namespace headrace {

struct NcclFunctions {
  decltype(&::ncclGetVersion) get_version;
  decltype(&::ncclGetUniqueId) get_unique_id;
  decltype(&::ncclCommInitRankConfig) init_rank;
  decltype(&::ncclCommGetAsyncError) get_async_error;
  decltype(&::ncclCommFinalize) finalize;
  decltype(&::ncclCommDestroy) destroy;
  decltype(&::ncclCommAbort) abort;
  decltype(&::ncclSend) send;
  decltype(&::ncclRecv) receive;
  decltype(&::ncclGetErrorString) error_string;
  decltype(&::ncclGetLastError) last_error;
};

inline constexpr char kNcclLibrary[] = "libnccl.so.2";

// Throws CommError: it cannot be opened, or is older than 2.14, which knows no communicators that
// do not block.
NcclFunctions open_nccl(const std::string& file);

// 22809 and 2804 as "2.28.9" and "2.8.4".
std::string nccl_version_text(int version);

}  // namespace headrace
