// The weights of a stage on their way to a device: a layer at a time lies in one of a few slots
// there, so that the next ones come over while it is computed with.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/device/device.h"
#include "engine/memory/weight_store.h"

namespace headrace {

// The calling thread only queues copies and goes on; it waits for no kernel, but for copies out of
// memory that `host` uses again. One thread uses it. What must outlive it: all it is made of.
class DeviceWeights final : public WeightSource {
 public:
  // Takes `slots` (at least 2) times slot_bytes(), and the norms and biases, of the device's
  // memory. `compute`: the stream that uses the weights. Throws DoesNotFit, ResourceMissing.
  DeviceWeights(Device& device, DeviceStream& compute, WeightStore& host, int slots);
  // Waits for what was queued.
  ~DeviceWeights() override;
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  // Pointers are to device memory; what is awaited is there for what is queued in `compute`
  // afterwards, all of a layer at once and the head in pieces of a slot.
  const LayerWeights& acquire_layer(int layer) override;
  void release_layer(int layer) override;
  const Linear& acquire_head() override;
  void release_head() override;
  Panels await(const Linear& linear, int64_t first) override;
  void done_with(const Linear& linear, int64_t end) override;

  // What a slot holds: the largest layer, and one panel of the head at least.
  static uint64_t slot_bytes(const WeightLayout& layout);

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

  Slot& slot() { return slots_[current_]; }
  void begin_slot();  // the next one, when what used it is done
  void end_slot();    // all is queued that fills it
  void release();
  // Queues the copy of panels that the host store has awaited.
  void copy(const Linear& linear, const Panels& panels, std::byte* to);
  // Waits for all but the last `but` copies out of memory that is used again.
  void finish_copies(size_t but);
  std::unique_ptr<DeviceEvent> take_event();
  const float* moved(const float* vector) const;
  Norm moved(const Norm& norm) const { return {moved(norm.weight), moved(norm.bias)}; }

  Device& device_;
  DeviceStream& compute_;
  WeightStore& host_;
  uint64_t slot_bytes_;
  std::unique_ptr<DeviceBuffer> memory_, vectors_;
  std::unique_ptr<DeviceStream> copies_;  // goes before the memory it copies to
  std::vector<Slot> slots_;
  size_t current_;
  std::deque<Leaving> leaving_;
  std::vector<std::unique_ptr<DeviceEvent>> events_;  // not in use
  LayerWeights layer_;                                // acquired
  Linear head_;                                       // the host's
};

}  // namespace headrace
