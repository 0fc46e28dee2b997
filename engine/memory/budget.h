// The only source of large buffers. One MemoryBudget per tier; what it hands out is counted against
// a limit by purpose, so that a stage can say what it needs before it starts and never exceeds it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace headrace {

class MemoryBudget;

// Owner of a block of host memory, 4 KiB aligned, not initialised. Gives the bytes back to its
// budget when it dies; the budget must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  friend class MemoryBudget;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  bool is_ring_ = false;
  MemoryBudget* budget_ = nullptr;
  std::string purpose_;
};

// Any thread.
class MemoryBudget {
 public:
  // `name` for messages ("host memory"), `limit` in bytes.
  MemoryBudget(std::string name, uint64_t limit);

  // Throws DoesNotFit (with the table of what is in use) if the limit would be exceeded, and
  // std::bad_alloc never: a refusal by the operating system is DoesNotFit, too.
  Buffer allocate(size_t bytes, const std::string& purpose);
  // Memory that is there twice, one after the other: data()[i] and data()[size() + i] are the same
  // byte for i < size(), so that what runs over the end goes on at the start.
  Buffer allocate_ring(size_t bytes, const std::string& purpose);

  // Counts bytes that something takes from the system by itself, for as long as the budget lives.
  // Throws DoesNotFit.
  void set_aside(uint64_t bytes, const std::string& purpose);

  uint64_t limit() const { return limit_; }
  uint64_t used() const;
  uint64_t available() const { return limit_ - used(); }
  // "host memory: weights 93.1 MiB, KV cache 512.0 MiB, ... of 900.0 MiB"
  std::string table() const;

 private:
  friend class Buffer;
  Buffer take(size_t bytes, const std::string& purpose, std::byte* (*get)(size_t size));
  void count(size_t bytes, const std::string& purpose);
  void release(size_t bytes, const std::string& purpose);

  std::string name_;
  uint64_t limit_;
  mutable std::mutex mutex_;
  uint64_t used_ = 0;
  std::map<std::string, uint64_t> by_purpose_;
};

// "93.1 MiB"; exact bytes below 10 KiB.
std::string format_bytes(uint64_t bytes);

}  // namespace headrace
