// Hidden states of a step that are too many for a device's memory: between layers they are in host
// memory, and pass through the device a micro-batch at a time.
#pragma once

#include <cstdint>
#include <vector>

namespace headrace {

// One thread uses it, the one that queues ops. Throws ResourceMissing.
class HiddenPassage {
 public:
  virtual ~HiddenPassage() = default;

  // Of a step with no more rows than this they stay on the device.
  virtual int64_t rows_at_once() const = 0;
  // The host's hidden states [rows][width] come in pieces of so many rows, in turn, once for each
  // layer. `are_made`: those of the first layer do not, for ops make them. The host's memory must
  // stay, and not be used, until end_sweep().
  virtual void begin_sweep(float* host, std::vector<int64_t> pieces, int layers, bool are_made) = 0;
  // Where the next piece is for ops that are queued from now on, until it is released.
  virtual float* acquire() = 0;
  // What ops have made of it goes back to the host.
  virtual void release() = 0;
  // After the last one: waits until all is on the host.
  virtual void end_sweep() = 0;
};

}  // namespace headrace
