// Ops on a device's memory, queued in one stream.
#pragma once

#include <memory>
#include <vector>

#include "engine/device/device.h"
#include "engine/ops/ops.h"

namespace headrace {

class DeviceOps final : public Ops {
 public:
  // `step_rows` and `pages`: most rows of a step, and most KV pages of all its sequences. `device`
  // and `stream` must outlive it. Throws DoesNotFit, ResourceMissing.
  DeviceOps(Device& device, DeviceStream& stream, int64_t step_rows, int64_t width, int rope_half,
            int64_t pages);
  ~DeviceOps() override;

  float* enter(float* host, int64_t floats) override;
  void leave(float* host, int64_t floats) override;
  void set_rope(const RopeTable& host) override;

  void rms_norm(const float* x, int64_t rows, int64_t n, const float* weight, float eps,
                float* y) override;
  void layer_norm(const float* x, int64_t rows, int64_t n, const float* weight, const float* bias,
                  float eps, float* y) override;
  void add(float* x, const float* y, int64_t rows, int64_t n) override;
  void relu(float* x, int64_t rows, int64_t n) override;
  void apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) override;
  void linear_panels(const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
                     int64_t first, int64_t end, float* y) override;
  void gate_panels(const float* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* gate) override;
  void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences, int heads,
              float scale, const float* q, const float* k, const float* v, float* out) override;
  float* fetch(float* from, int64_t floats) override;

 private:
  // Host memory on its way to the device. What callers pass is copied here first, so that it need
  // not outlive the call, whatever goes wrong afterwards.
  struct Staging {
    std::vector<std::byte> bytes;
    std::unique_ptr<DeviceEvent> copied;
  };
  // One that is not in use, of so many bytes.
  Staging& stage(size_t bytes);
  void bring(DeviceBuffer& to, Staging& from);
  void bring(DeviceBuffer& to, std::span<const float> host);
  void upload(std::span<const AttentionSequence> sequences);

  Device& device_;
  DeviceStream& stream_;
  std::unique_ptr<DeviceBuffer> hidden_, cos_, sin_, tables_;
  int rope_half_;
  std::vector<float> fetched_;
  std::vector<Staging> staging_;
  size_t next_ = 0;  // of staging_
};

}  // namespace headrace
