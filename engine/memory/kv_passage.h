// KV pages that live in host memory or on disk, where a device does not compute with them: for a
// visit they are where it does, and the host may use those in its memory at home.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headrace {

// One thread uses it.
class KvPassage {
 public:
  // A page that a visit needs, by the number of its home, which is the same in all layers. One that
  // has its home on disk gets there when it is full; before, it is in host memory, where each
  // sequence has room for one.
  struct Page {
    int64_t home;
    bool has_tokens;         // of before the visit
    bool is_written;         // the visit adds some; it was not full
    bool is_filled = false;  // is full afterwards
    int slot = 0;            // of its sequence
    bool operator==(const Page&) const = default;
  };

  virtual ~KvPassage() = default;

  // In host memory; the numbers after them are of homes on disk.
  virtual int64_t homes() const = 0;
  virtual int64_t disk_homes() const { return 0; }
  // Consecutive homes that are best given to one sequence.
  virtual int64_t run() const = 0;
  // The host computes with sequences that have all of their pages here, so that one of about so
  // many pages should have all or none here. 0: it computes with none.
  virtual int64_t whole() const = 0;
  // Pages of a layer that are there at once, the most that a visit may have.
  virtual int64_t room() const = 0;

  // A sweep makes these visits to layer 0 in turn, then to layer 1, and so on. Throws
  // ResourceMissing, as the others do, and IoError.
  virtual void begin_sweep(std::vector<std::vector<Page>> visits) = 0;
  // From here on what is queued finds the pages of the next visit at page(0), page(1), ..., until
  // it is released.
  virtual void acquire(int layer, size_t visit) = 0;
  virtual std::byte* page(int64_t index) = 0;
  virtual void release() = 0;

  // Host memory of a page that has its home there and that no visit of the sweep has. Who uses it
  // waits before, once in a sweep, until all is there that earlier sweeps have written.
  virtual std::byte* at_home(int layer, int64_t home) = 0;
  virtual void await_homes() = 0;
};

}  // namespace headrace
