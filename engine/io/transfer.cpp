#include "engine/io/transfer.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace headrace::io_detail {
namespace {

std::string place(const Transfer& t) {
  return t.file->path() + " at offset " + std::to_string(t.next_offset());
}

std::string failure_text(const Transfer& t, int error) {
  if (error == ENOSPC || error == EDQUOT) {
    return "writing " + place(t) + " failed: " + std::strerror(error) +
           "; free some space, or give another --disk";
  }
  return std::string(t.is_write ? "writing " : "reading ") + place(t) +
         " failed: " + std::strerror(error);
}

}  // namespace

void check_request(const Transfer& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.memory);
  if (t.offset % kIoAlignment != 0 || t.bytes % kIoAlignment != 0 || address % kIoAlignment != 0) {
    throw std::logic_error("a transfer of " + place(t) + " is not aligned");
  }
  if (t.is_write && (t.offset > t.file->allocated() || t.bytes > t.file->allocated() - t.offset)) {
    throw std::logic_error("a write to " + place(t) + " goes beyond what was reserved");
  }
}

bool advance(Transfer& t, int64_t result) {
  if (result == -EINTR || result == -EAGAIN) return true;
  if (result < 0) {
    t.failure = failure_text(t, static_cast<int>(-result));
    return false;
  }
  const size_t end = t.moved + static_cast<size_t>(result);
  if (end >= t.bytes) {
    t.moved = t.bytes;
    return false;
  }
  // A short piece goes on from the last aligned place: what follows gives the reason (an error, or
  // the end of the file), if there is one.
  const size_t next = end / kIoAlignment * kIoAlignment;
  if (next > t.moved) {
    t.moved = next;
    return true;
  }
  t.moved = end;
  t.failure = t.is_write ? failure_text(t, EIO)
                         : "reading " + place(t) + ": the file ends there, " +
                               std::to_string(t.bytes - end) + " bytes early; it was truncated";
  return false;
}

void move_all(Transfer& t) {
  if (t.bytes == 0) return;
  for (int64_t result = 0;;) {
    const int descriptor = t.file->descriptor();
    const auto offset = static_cast<off_t>(t.next_offset());
    result = t.is_write ? ::pwrite(descriptor, t.next_memory(), t.next_bytes(), offset)
                        : ::pread(descriptor, t.next_memory(), t.next_bytes(), offset);
    if (!advance(t, result < 0 ? -errno : result)) return;
  }
}

}  // namespace headrace::io_detail
