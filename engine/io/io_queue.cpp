#include "engine/io/io_queue.h"

#include <cerrno>
#include <cstring>

#include "engine/io/thread_queue.h"
#include "engine/io/transfer.h"
#include "engine/io/uring_queue.h"

namespace headrace {

namespace io_detail {

void check(const Transfer& t) {
  if (t.error == 0 && t.moved == t.bytes) return;
  const std::string place = t.file->path() + " at offset " + std::to_string(t.offset + t.moved);
  if (t.error == ENOSPC || t.error == EDQUOT) {
    throw IoError(place + ": no space left on the disk; free some or give another --disk");
  }
  if (t.error != 0) {
    throw IoError(std::string(t.is_write ? "writing " : "reading ") + place +
                  " failed: " + std::strerror(t.error));
  }
  throw IoError("reading " + place + ": the file ends there, " + std::to_string(t.bytes - t.moved) +
                " bytes early; it was truncated");
}

}  // namespace io_detail

std::unique_ptr<IoQueue> make_io_queue(int depth, IoMethod method) {
  if (method == IoMethod::kThreads) return std::make_unique<ThreadQueue>(depth, "");
  try {
    return std::make_unique<UringQueue>(depth);
  } catch (const ResourceMissing& missing) {
    if (method == IoMethod::kUring) throw;
    return std::make_unique<ThreadQueue>(depth, missing.what());
  }
}

}  // namespace headrace
