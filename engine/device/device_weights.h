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
class DeviceWeights {
 public:
  // Takes `slots` (at least 2) times slot_bytes(), and the norms and biases, of the device's
  // memory. `compute`: the stream that uses the weights. Throws DoesNotFit, ResourceMissing.
  DeviceWeights(Device& device, DeviceStream& compute, WeightStore& host, int slots);
  // Waits for what was queued.
  ~DeviceWeights();
  DeviceWeights(const DeviceWeights&) = delete;
  DeviceWeights& operator=(const DeviceWeights&) = delete;

  // As in WeightStore, but all panels are there for what is queued in `compute` until the release,
  // and pointers are to device memory. Throws IoError, ResourceMissing.
  const LayerWeights& acquire_layer(int layer);
  void release_layer();

  // The head in pieces: calls use(panels), which queues what computes with them.
  template <typename Use>
  void for_head(Use use) {
    const Linear& head = host_.acquire_head();
    for (int64_t done = 0; done < head.weight.panel_count();) {
      const Panels panels = next_of_head(head, done);
      use(panels);
      release();
      done = panels.end;
    }
    finish_copies(0);
    host_.release_head();
  }

  // Of HeadWeights::final_norm.
  Norm final_norm() const { return moved(host_.head().final_norm); }

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
  Panels next_of_head(const Linear& head, int64_t first);
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
};

}  // namespace headrace
