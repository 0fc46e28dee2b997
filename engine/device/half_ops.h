// Ops on a device's tensor cores, queued in one stream. Operands are f16, sums and the residual
// stream float32. The bits of a row do not depend on the batch, but are not the CPU's.
#pragma once

#include <memory>

#include "engine/device/device_ops.h"

namespace headrace {

class HalfOps final : public DeviceOps {
 public:
  struct Sizes : DeviceOps::Sizes {
    int64_t micro_batch_rows = 0;
    int64_t gated_width = 0;  // of a gated MLP's inside; 0: there is none
    // Of the queries, where KV pages are not f16 and attention is computed in float32; else 0.
    int64_t float_attention_width = 0;
  };
  // `room`: device memory for 32 rows of f16 at least, where matrices that are none may be
  // expanded.
  HalfOps(Device& device, DeviceStream& stream, const Sizes& sizes, std::span<std::byte> room);
  ~HalfOps() override { wait_for_all(); }

  // Device memory that it takes, besides DeviceOps.
  static uint64_t bytes(const Sizes& sizes);

  const Operand* enter_operand(float* host, int64_t rows, int64_t n) override;
  int64_t operand_bytes() const override { return sizeof(Half); }
  void normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) override;
  using DeviceOps::normalise;
  const Operand* operand(const float* x, int64_t rows, int64_t n, float* room) override;
  void linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                     int64_t first, int64_t end, float* y) override;
  // One product where f16 rows of the same shape, biases and results lie evenly apart, or where
  // none are rows of f16 and each has room as such.
  bool linear_together(const Operand* x, int64_t rows, std::span<const Projection> all) override;
  void add_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                  int64_t first, int64_t end, float* room, float* y) override;
  void relu_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* inner) override;
  void gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* inner) override;
  const Operand* activated(float* inner, int64_t rows, int64_t n) override;
  void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences, int heads,
              float scale, const float* q, const float* k, const float* v, Operand* out) override;

 private:
  bool packed_together(const Operand* x, int64_t rows, std::span<const Projection> all);
  void multiply(HalfProduct product, const PackedMatrix& w, int64_t first, int64_t end);

  const std::span<std::byte> room_;
  std::unique_ptr<DeviceBuffer> entered_, up_, gated_, attended_;
};

}  // namespace headrace
