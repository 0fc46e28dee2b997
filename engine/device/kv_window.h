// KV pages of a stage that live in pinned host memory, or on disk, and pass through a ring on the
// device: those of the next visits come in while one computes, and what a visit has written goes
// back.
//
// All copies are in one stream, in the order of the visits, so that a page is home again before it
// is fetched anew. Homes lie layer by layer, so that a sequence's pages come in few pieces. Pages
// of the disk pass through host memory on both ways (DiskHomes), but for those that are not full.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/device/disk_homes.h"
#include "engine/device/event_pool.h"
#include "engine/memory/kv_passage.h"

namespace headrace {

class KvWindow final : public KvPassage {
 public:
  struct Sizes {
    size_t stride = 0;  // bytes of a page; a multiple of kIoAlignment if some are on disk
    int layers = 0;
    int64_t homes = 0;
    int64_t room = 0;   // pages
    int64_t whole = 0;  // see KvPassage
    int64_t disk_homes = 0;
    // Where there are some: sequences, and pages of a layer that a visit may fill.
    int64_t slots = 0, filled = 0;
  };
  // `compute`: the stream that visits are used in. `host`: host_bytes(), pinned. All must outlive
  // it. Throws DoesNotFit, ResourceMissing, IoError.
  KvWindow(Device& device, DeviceStream& compute, std::byte* host, const Sizes& sizes,
           const KvDiskAccess& disk = {});
  // Waits for what was queued.
  ~KvWindow() override;
  KvWindow(const KvWindow&) = delete;
  KvWindow& operator=(const KvWindow&) = delete;

  static uint64_t host_bytes(const Sizes& sizes);
  static uint64_t device_bytes(const Sizes& sizes) {
    return static_cast<uint64_t>(sizes.room) * sizes.stride;
  }
  static uint64_t file_bytes(const Sizes& sizes) {
    return DiskHomes::file_bytes(disk_sizes(sizes));
  }
  static int64_t run_of(size_t stride);
  // Homes for so many pages of so many sequences, none of which shares a run with another.
  static int64_t homes_for(int64_t pages, int64_t sequences, size_t stride);

  int64_t homes() const override { return sizes_.homes; }
  int64_t disk_homes() const override { return sizes_.disk_homes; }
  int64_t run() const override { return run_of(sizes_.stride); }
  int64_t whole() const override { return sizes_.whole; }
  int64_t room() const override { return sizes_.room; }
  void begin_sweep(std::vector<std::vector<Page>> visits) override;
  void acquire(int layer, size_t visit) override;
  std::byte* page(int64_t index) override { return place(freed_ + index); }
  void release() override;
  std::byte* at_home(int layer, int64_t number) override { return home(layer, number); }
  void await_homes() override { written_->synchronize(); }

 private:
  struct Visit {
    std::vector<Page> pages;
    size_t after = 0;  // visits of the layer that write what this one brings
  };
  static DiskHomes::Sizes disk_sizes(const Sizes& sizes);
  std::byte* place(int64_t number) {
    return ring_->data() + static_cast<size_t>(number % sizes_.room) * sizes_.stride;
  }
  std::byte* home(int layer, int64_t number) {
    return host_ + static_cast<size_t>(layer * sizes_.homes + number) * sizes_.stride;
  }
  // Of a sequence's page that is not full yet and has its home on disk.
  std::byte* desk(int layer, int slot) {
    return desks_ + static_cast<size_t>(layer * sizes_.slots + slot) * sizes_.stride;
  }
  bool is_on_disk(const Page& page) const { return page.home >= sizes_.homes; }
  bool comes_from_disk(const Page& page) const {
    return is_on_disk(page) && page.has_tokens && !page.is_written;
  }
  uint64_t visits_of_sweep() const { return static_cast<uint64_t>(sizes_.layers) * visits_.size(); }
  const Visit& visit_of(uint64_t number) const { return visits_[number % visits_.size()]; }
  int layer_of(uint64_t number) const { return static_cast<int>(number / visits_.size()); }
  std::vector<DiskHomes::Visit> wanted_from_disk() const;
  bool may_open(uint64_t number);
  void bring_ahead();
  void bring(uint64_t number);
  // Where the visit's pages come from and go to on the host, null for those that do not.
  std::vector<std::byte*> sources(uint64_t number);
  std::vector<std::byte*> targets(uint64_t number);
  // Calls copy(on the host, place, bytes) in pieces that lie together at both ends. `first`: place
  // of the first page.
  template <typename Copy>
  void for_pieces(std::span<std::byte* const> host, int64_t first, Copy copy);

  Device& device_;
  DeviceStream& compute_;
  Sizes sizes_;
  std::byte* host_;                       // [layers][homes][stride]
  std::byte* desks_;                      // [layers][slots][stride], if there are homes on disk
  std::unique_ptr<DeviceBuffer> ring_;    // [room][stride]; visits go round in it
  std::unique_ptr<DeviceStream> copies_;  // goes before the memory it copies to
  std::unique_ptr<DeviceEvent> used_;     // by the visit that was released last
  std::unique_ptr<DeviceEvent> written_;  // by earlier sweeps, all homes
  std::vector<Visit> visits_;             // of a layer
  uint64_t next_ = 0;                     // visit of the sweep to be acquired or released
  // Of visits from next_ on whose pages are on their way, when they are there.
  std::deque<std::unique_ptr<DeviceEvent>> opened_;
  int64_t brought_ = 0, freed_ = 0;  // places, pages since the sweep began
  EventPool events_;
  std::optional<DiskHomes> disk_;
};

}  // namespace headrace
