#include "engine/memory/budget.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <utility>

#include "engine/error.h"
#include "engine/sanitizer.h"

namespace headrace {
namespace {

constexpr size_t kPage = 4096;

#ifdef HEADRACE_ASAN

// From the heap, whose bounds the sanitizer watches.
std::byte* plain_memory(size_t size) {
  return static_cast<std::byte*>(std::aligned_alloc(kPage, size));
}
void free_plain(std::byte* memory, size_t) { std::free(memory); }

#else

constexpr size_t kHugePage = size_t{2} << 20;

// Mapped, so that it goes back to the system with its owner. In huge pages where it is large
// enough: KV pages are read here and there, and small pages would take longer to be found than to
// be read.
std::byte* plain_memory(size_t size) {
  const size_t spare = size >= kHugePage ? kHugePage - kPage : 0;
  void* const place =
      ::mmap(nullptr, size + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(place);
  if (spare == 0) return begin;
  const size_t skipped = -reinterpret_cast<uintptr_t>(begin) % kHugePage;
  std::byte* const memory = begin + skipped;
  if (skipped > 0) ::munmap(begin, skipped);
  if (skipped < spare) ::munmap(memory + size, spare - skipped);
  ::madvise(memory, size, MADV_HUGEPAGE);  // a wish: where it is refused, small pages do
  return memory;
}
void free_plain(std::byte* memory, size_t size) { ::munmap(memory, size); }

#endif

// The same pages at two places: mremap of 0 bytes of a shared mapping maps it once more.
std::byte* twofold_memory(size_t size) {
  void* place = ::mmap(nullptr, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return nullptr;
  auto* const memory = static_cast<std::byte*>(place);
  const bool mapped =
      ::mmap(memory, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
          MAP_FAILED &&
      ::mremap(memory, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, memory + size) != MAP_FAILED;
  if (mapped) return memory;
  ::munmap(memory, 2 * size);
  return nullptr;
}

}  // namespace

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      is_ring_(std::exchange(other.is_ring_, false)),
      budget_(std::exchange(other.budget_, nullptr)),
      purpose_(std::move(other.purpose_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  Buffer taken(std::move(other));  // gives back what this held when it goes
  std::swap(data_, taken.data_);
  std::swap(size_, taken.size_);
  std::swap(is_ring_, taken.is_ring_);
  std::swap(budget_, taken.budget_);
  std::swap(purpose_, taken.purpose_);
  return *this;
}

Buffer::~Buffer() {
  if (!data_) return;
  if (is_ring_) {
    ::munmap(data_, 2 * size_);
  } else {
    free_plain(data_, size_);
  }
  budget_->release(size_, purpose_);
}

MemoryBudget::MemoryBudget(std::string name, uint64_t limit)
    : name_(std::move(name)), limit_(limit) {}

Buffer MemoryBudget::allocate(size_t bytes, const std::string& purpose) {
  return take(bytes, purpose, plain_memory);
}

Buffer MemoryBudget::allocate_ring(size_t bytes, const std::string& purpose) {
  Buffer buffer = take(bytes, purpose, twofold_memory);
  buffer.is_ring_ = true;
  return buffer;
}

Buffer MemoryBudget::take(size_t bytes, const std::string& purpose,
                          std::byte* (*get)(size_t size)) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  constexpr size_t kMost = std::numeric_limits<ptrdiff_t>::max() / kPage * kPage;  // never there
  const size_t size = bytes > kMost ? kMost : (bytes + kPage - 1) / kPage * kPage;
  count(size, purpose);
  buffer.data_ = get(size);
  if (!buffer.data_) {
    release(size, purpose);
    throw DoesNotFit("the operating system refused " + format_bytes(size) + " for " + purpose +
                     "; give a smaller budget (--host-memory)");
  }
  buffer.size_ = size;
  buffer.budget_ = this;
  buffer.purpose_ = purpose;
  return buffer;
}

void MemoryBudget::set_aside(uint64_t bytes, const std::string& purpose) { count(bytes, purpose); }

void MemoryBudget::count(size_t bytes, const std::string& purpose) {
  const std::lock_guard lock(mutex_);
  if (bytes > limit_ - used_) {
    std::string text = name_ + " is too small: " + purpose + " needs " + format_bytes(bytes);
    for (const auto& [what, used] : by_purpose_) {
      if (used != 0) text += "\n  in use: " + what + " " + format_bytes(used);
    }
    throw DoesNotFit(text + "\n  budget: " + format_bytes(limit_) +
                     ", smallest that would do so far: " + format_bytes(used_ + bytes));
  }
  used_ += bytes;
  by_purpose_[purpose] += bytes;
}

void MemoryBudget::release(size_t bytes, const std::string& purpose) {
  const std::lock_guard lock(mutex_);
  used_ -= bytes;
  by_purpose_[purpose] -= bytes;
}

uint64_t MemoryBudget::used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

std::string MemoryBudget::table() const {
  const std::lock_guard lock(mutex_);
  std::string text = name_ + ":";
  const char* separator = " ";
  for (const auto& [what, used] : by_purpose_) {
    if (used == 0) continue;
    text += separator + what + " " + format_bytes(used);
    separator = ", ";
  }
  return text + " of " + format_bytes(limit_);
}

std::string format_bytes(uint64_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + " B";
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s", value, units[unit]);
  return text;
}

}  // namespace headrace
