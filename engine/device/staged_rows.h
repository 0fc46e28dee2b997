// HostRows by pinned memory on the host and copies in a stream of their own.
#pragma once

#include <memory>
#include <vector>

#include "engine/device/device.h"
#include "engine/memory/budget.h"
#include "engine/ops/host_attention.h"

namespace headrace {

class StagedRows final : public HostRows {
 public:
  struct Sizes {
    int64_t rows = 0;  // at once; 0: none
    int64_t q_width = 0, kv_width = 0;
    bool half = false;  // operands are f16
  };
  // `compute`: the stream of the ops. It and `device` must outlive it. Throws DoesNotFit,
  // ResourceMissing.
  StagedRows(Device& device, DeviceStream& compute, MemoryBudget& budget, const Sizes& sizes);
  // Waits for what was queued.
  ~StagedRows() override;
  StagedRows(const StagedRows&) = delete;
  StagedRows& operator=(const StagedRows&) = delete;

  static uint64_t host_bytes(const Sizes& sizes) {
    return static_cast<uint64_t>(sizes.rows * 2 * (sizes.q_width + sizes.kv_width)) * sizeof(float);
  }

  void send(std::span<const AttentionSequence> sequences, const float* q, const float* k,
            const float* v) override;
  Rows receive() override;
  void send_back(Operand* out) override;

 private:
  // Rows that lie together at both ends.
  struct Run {
    int64_t first_row, staged, rows;
  };

  Device& device_;
  DeviceStream& compute_;
  Sizes sizes_;
  Buffer memory_;  // q, k, v, out, one after the other
  float *q_, *k_, *v_, *out_;
  std::unique_ptr<DevicePin> pin_;
  std::unique_ptr<DeviceStream> copies_;             // goes before the memory it copies to
  std::unique_ptr<DeviceEvent> computed_, arrived_;  // q, k and v
  std::vector<Run> runs_;                            // of the rows that were sent last
};

}  // namespace headrace
