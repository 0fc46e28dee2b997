// The weights of a stage on a device: some of them for good, the others of a layer at a time in one
// of a few slots, so that the next ones come over while it is computed with.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "engine/device/device.h"
#include "engine/device/event_pool.h"
#include "engine/memory/weight_store.h"

namespace headrace {

struct DevicePlacement {
  static constexpr int kAll = std::numeric_limits<int>::max();
  // Per unit: so many of its matrices, the first ones in the order of use, pass through; the others
  // are resident, but those that the host projects with. Of a layer any number, of other units all
  // or none. Empty: all of all units.
  std::vector<int> passing;
  int slots = 2;  // at least, where some pass
  // Layers are used as rows of f16: what is resident lies there so where that takes no more than
  // its panels do, all else is expanded when its layer is acquired; but not layers of low-bit
  // formats for kFewRows.
  bool half_rows = false;

  // All of it is resident.
  bool has(size_t unit) const { return has(unit, 0); }
  bool has(size_t unit, size_t matrix) const {
    return !passing.empty() && matrix >= static_cast<size_t>(passing[unit]);
  }
};

// The calling thread only queues copies and goes on; it waits for no kernel, but for copies out of
// memory that `host` uses again. One thread uses it. What must outlive it: all it is made of.
class DeviceWeights final : public WeightSource {
 public:
  // Takes bytes_needed() of the device's memory. `compute`: the stream that uses the weights.
  // Throws DoesNotFit, ResourceMissing.
  DeviceWeights(Device& device, DeviceStream& compute, WeightStore& host,
                DevicePlacement placement);
  // Waits for what was queued.
  ~DeviceWeights() override;
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  // Brings over what is resident, packed by all threads through `room` bytes of the budget. Once,
  // first; a placement without residents needs none. Throws ModelError, IoError, DoesNotFit,
  // ResourceMissing.
  void load(const Checkpoint& checkpoint, ThreadPool& threads, MemoryBudget& budget, uint64_t room);

  // Pointers are to device memory; what is awaited is there for what is queued in `compute`
  // afterwards, all of a layer at once and the head in pieces of a slot.
  const LayerWeights& acquire_layer(int layer) override;
  void release_layer(int layer) override;
  void expect_rows(int64_t rows) override { few_rows_ = rows <= kFewRows; }
  const EmbeddingTables* embedding() override { return embedding_ ? &*embedding_ : nullptr; }
  bool is_fixed() const override { return slots_.empty(); }
  void prefetch() override;
  const Linear& acquire_head() override;
  void release_head() override;
  Panels await(const Linear& linear, int64_t first) override;
  void done_with(const Linear& linear, int64_t end) override;

  // For rows of f16 of what is acquired and is not: of a layer's largest matrix, or of a part of
  // the head. Belongs to `compute`.
  std::span<std::byte> room() { return {expanded_->data(), expanded_->size()}; }

  // What a slot holds: the most of a layer that passes through, and one panel of such a head at
  // least.
  static uint64_t slot_bytes(const WeightLayout& layout, const DevicePlacement& placement);
  // Of device memory, with room().
  static uint64_t expanded_bytes(const WeightLayout& layout, const DevicePlacement& placement);
  static uint64_t resident_bytes(const WeightLayout& layout, const DevicePlacement& placement);
  // What passes through in every sweep.
  static uint64_t passing_bytes(const WeightLayout& layout, const DevicePlacement& placement);
  // Of a unit's image, what the host must have: all of what passes, and what it uses itself.
  static uint64_t host_end(const WeightLayout& layout, const DevicePlacement& placement,
                           size_t unit);
  // What is expanded in every sweep of many rows, layers and head: from formats of 16 bits and
  // more, and from those of fewer. Bytes before it, and as rows of f16.
  struct Expansion {
    uint64_t packed = 0, rows = 0;
  };
  struct Expansions {
    Expansion plain, low_bit;
  };
  static Expansions expansions(const WeightLayout& layout, const DevicePlacement& placement);
  static uint64_t bytes_needed(const WeightLayout& layout, const DevicePlacement& placement);
  // Whether tokens are looked up on the device.
  static bool has_embedding(const WeightLayout& layout, const DevicePlacement& placement);

 private:
  struct Slot {
    std::byte* memory;
    std::unique_ptr<DeviceEvent> filled, free;
  };
  // A copy out of memory that goes back to the host store.
  struct Leaving {
    const Linear* linear;
    int64_t end;
    std::unique_ptr<DeviceEvent> copied;
  };

  // A unit's resident matrices, in the order of use.
  struct Resident {
    std::unique_ptr<DeviceBuffer> memory;
    std::vector<PackedMatrix> matrices;
  };

  void load_matrix(const Checkpoint& checkpoint, const WeightUnit& unit, const PlacedMatrix& matrix,
                   ThreadPool& threads, std::span<std::byte> host, DeviceBuffer& panels,
                   std::byte* to);
  // A layer whose copies are queued.
  struct Filled {
    int layer;
    size_t slot;
    LayerWeights weights;
  };
  // What passes is in the slot.
  LayerWeights on_device(size_t unit, const LayerWeights& host, std::byte* slot) const;
  bool stays_packed(const LayerWeights& weights) const;
  void expand(LayerWeights& weights);
  void fill_from(int layer, bool from_disk);
  void fill(int layer);
  Slot& slot() { return slots_[current_]; }
  void begin_slot();  // the next one, when what used it is done
  // Queues the copy of panels that the host store has awaited.
  void copy(const Linear& linear, const Panels& panels, std::byte* to);
  // Waits for all but the last `but` copies out of memory that is used again.
  void finish_copies(size_t but);
  const float* moved(const float* vector) const;
  Norm moved(const Norm& norm) const { return {moved(norm.weight), moved(norm.bias)}; }

  Device& device_;
  DeviceStream& compute_;
  WeightStore& host_;
  DevicePlacement placement_;
  uint64_t slot_bytes_;
  std::vector<Resident> resident_;  // per unit
  std::unique_ptr<DeviceBuffer> memory_, expanded_, vectors_;
  std::unique_ptr<DeviceStream> copies_;  // goes before the memory it copies to
  EventPool events_;
  std::vector<Slot> slots_;
  size_t current_;
  std::deque<Leaving> leaving_;
  std::deque<Filled> filled_;
  LayerWeights layer_;  // acquired
  std::optional<size_t> layer_slot_;
  bool few_rows_ = false;
  std::optional<EmbeddingTables> embedding_;
  Linear head_;  // the host's
};

}  // namespace headrace
