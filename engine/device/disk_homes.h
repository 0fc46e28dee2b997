// KV pages of a stage on a device that have their homes on disk, and the pinned host memory that
// they pass through.
//
// What visits want is read in the order of the visits, as far ahead as there is room; what they
// have filled is written when it has been copied to the host, and not read before that is done: who
// wants it sooner has it from where it leaves.
// A home is a page in each layer: byte (layer * homes + home) * stride of a file without a name, of
// which nothing is left however the process ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/device/event_pool.h"
#include "engine/memory/kv_disk.h"

namespace headrace {

// One thread uses it.
class DiskHomes {
 public:
  struct Sizes {
    size_t stride = 0;  // bytes of a page; a multiple of kIoAlignment
    int layers = 0;
    int64_t homes = 0;
    // Pages of a layer on the host: those that come, the most that a visit may want; those that
    // leave, the most that one may fill.
    int64_t coming = 0, leaving = 0;
  };
  struct Visit {
    std::vector<int64_t> homes;  // of the pages that it wants
    size_t after = 0;            // visits of the layer that fill some of them
  };
  // `host`: host_bytes(), pinned and aligned to kIoAlignment; it and the device must outlive this.
  // Reserves the disk. Throws IoError.
  DiskHomes(Device& device, const KvDiskAccess& disk, std::byte* host, const Sizes& sizes);

  static uint64_t host_bytes(const Sizes& sizes) {
    return static_cast<uint64_t>(sizes.coming + sizes.leaving) * sizes.stride;
  }
  static uint64_t file_bytes(const Sizes& sizes) {
    return static_cast<uint64_t>(sizes.homes * sizes.layers) * sizes.stride;
  }

  // A sweep makes these visits to layer 0 in turn, then to layer 1, and so on; each is acquired,
  // released and ended, the next ones maybe before it is ended. What fails throws IoError here or
  // in any call after it.
  void begin_sweep(std::vector<Visit> visits);
  // Begins what can begin without waiting.
  void go_on();

  // The pages of the next visit have come, so that acquire() would not wait.
  bool is_there();
  // Waits for them; then page(0), page(1), ... are there for what is queued in `copies`, until what
  // release() has found queued there is done. Where there are others before it that are not ended,
  // is_there() first.
  void acquire();
  std::byte* page(int64_t index) const { return coming_.front().pages[index]; }
  void release(DeviceStream& copies);

  // Where a page that the visit fills is copied to, to be written when what end_visit() has found
  // queued in `copies`, the same stream, is done.
  std::byte* leave(int layer, int64_t home);
  void end_visit(DeviceStream& copies);

 private:
  // A visit whose pages are being read, or copied to the device.
  struct Coming {
    std::vector<std::byte*> pages;
    int64_t from_disk = 0;  // of them
    std::vector<IoTicket> tickets;
    int64_t begin = 0;  // of Timeline::now()
  };
  struct Copied {
    int64_t pages;
    std::unique_ptr<DeviceEvent> done;
  };
  // Pages that lie together on disk and in memory.
  struct Piece {
    uint64_t offset;
    std::byte* memory;
    size_t bytes;
  };
  // What a visit has filled.
  struct Leaving {
    std::vector<Piece> pieces;
    std::unique_ptr<DeviceEvent> copied;
    std::vector<IoTicket> tickets;
    int64_t begin = 0;  // of Timeline::now()
  };
  size_t position(int64_t place, int64_t of) const {
    return static_cast<size_t>(place % of) * sizes_.stride;
  }
  uint64_t offset(int layer, int64_t home) const {
    return static_cast<uint64_t>(layer * sizes_.homes + home) * sizes_.stride;
  }
  uint64_t visits_of_sweep() const { return static_cast<uint64_t>(sizes_.layers) * visits_.size(); }
  const Visit& visit_of(uint64_t number) const { return visits_[number % visits_.size()]; }
  int layer_of(uint64_t number) const { return static_cast<int>(number / visits_.size()); }
  void add(std::vector<Piece>& pieces, uint64_t offset, std::byte* memory) const;
  // Of the visit that is read next.
  bool is_within_reach() const;
  bool has_room() const;
  void read();
  void write_copied();
  // Wait for what is first.
  void finish_copy();
  void finish_leaving();

  Sizes sizes_;
  bool ahead_;
  File file_;
  std::byte *coming_memory_, *leaving_memory_;  // [pages][stride]; pages go round in it
  EventPool events_;
  std::unique_ptr<IoQueue> queue_;
  std::vector<Visit> visits_;                     // of a layer
  uint64_t read_ = 0, acquired_ = 0, ended_ = 0;  // visits of the sweep
  std::deque<Coming> coming_;                     // those read that are not released
  std::deque<Copied> copied_;                     // then, in turn
  int64_t started_ = 0, freed_ = 0;               // places of pages that come
  std::vector<Piece> filled_;                     // by the visit that is not ended
  std::deque<Leaving> leaving_;
  int64_t left_ = 0, written_ = 0;                      // places of pages that leave
  std::unordered_map<uint64_t, std::byte*> unwritten_;  // those, by offset
};

}  // namespace headrace
