// Ops on a device's memory, queued in one stream, with the bits of the CPU. Operands are floats.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "engine/device/device.h"
#include "engine/device/pinned_room.h"
#include "engine/ops/ops.h"

namespace headrace {

class DeviceOps : public Ops {
 public:
  // The most of a step.
  struct Sizes {
    int64_t step_rows = 0;
    int64_t hidden_rows = 0;  // whose hidden states are on the device at once
    int64_t sequences = 0;
    int64_t width = 0;  // of hidden states
    int rope_half = 0;
    int64_t pages = 0;   // KV pages of all sequences
    int64_t logits = 0;  // that are fetched at once
  };
  // `device` and `stream` must outlive it. Throws DoesNotFit, ResourceMissing.
  DeviceOps(Device& device, DeviceStream& stream, const Sizes& sizes);
  ~DeviceOps() override;

  // Host memory that it takes, pinned.
  static uint64_t host_bytes(const Sizes& sizes);
  // Device memory that it takes.
  static uint64_t bytes(const Sizes& sizes);

  // Where hidden states are that have no other place. They may pass through it, too, while no step
  // uses it (HiddenWindow).
  std::span<float> hidden_room() { return {hidden_->as<float>(), hidden_->size() / sizeof(float)}; }

  void begin_step() override { uploaded_.clear(); }
  void work_in(const HiddenPlace& place) override { place_ = place; }
  float* enter(float* host, int64_t floats) override;
  float* enter(const EmbeddingTables& tables, const EmbeddingRows& rows) override;
  void embed(const EmbeddingTables& tables, const EmbeddingRows& rows, float* x) override;
  const Operand* enter_operand(float* host, int64_t rows, int64_t n) override;
  int64_t operand_bytes() const override { return sizeof(float); }
  void leave(float* host, int64_t floats) override;
  void leave_rows(float* host, int64_t width, std::span<const int64_t> rows) override;
  void set_rope(const RopeTable& host) override;

  void normalise(const RowNorm& norm, const float* x, int64_t rows, float* y) override;
  void normalise(const RowNorm& norm, const float* x, int64_t rows, Operand* y) override;
  const Operand* operand(const float* x, int64_t rows, int64_t n, float* room) override;
  void apply_rope(int64_t first_row, float* x, int64_t rows, int heads, int head_dim) override;
  void linear_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                     int64_t first, int64_t end, float* y) override;
  void add_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                  int64_t first, int64_t end, float* room, float* y) override;
  void relu_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* inner) override;
  void gate_panels(const Operand* x, int64_t rows, const PackedMatrix& w, const float* bias,
                   int64_t first, int64_t end, float* inner) override;
  const Operand* activated(float* inner, int64_t rows, int64_t n) override;
  void attend(const KvPageShape& shape, std::span<const AttentionSequence> sequences, int heads,
              float scale, const float* q, const float* k, const float* v, Operand* out) override;

  void expect(std::span<const AttentionSequence> sequences) override { upload(sequences); }
  bool repeat(int64_t key) override;
  void end_repeat() override;

  int64_t block_floats() const override { return kBlockFloats; }
  void begin_best(int64_t rows) override;
  void find_best(const float* logits, int64_t first_row, int64_t rows, int64_t width,
                 int64_t id) override;
  void take_best(std::span<BestToken> host) override;
  float* fetch(float* from, int64_t floats) override;

  static constexpr int64_t kBlockFloats = 16 << 20;

 protected:
  // Brings the sequences and their page tables over and stores k and v; returns where the
  // sequences are.
  const AttentionSequence* store(const KvPageShape& shape,
                                 std::span<const AttentionSequence> sequences, const float* k,
                                 const float* v);
  static int64_t most_rows(std::span<const AttentionSequence> sequences);
  // For destructors: nothing that was queued uses what goes now.
  void wait_for_all() noexcept;

  Device& device_;
  DeviceStream& stream_;

 private:
  // Where the step's hidden states are.
  float* hidden() { return place_.memory ? place_.memory : hidden_->as<float>(); }

  // What callers pass is copied into pinned memory first, so that it need not outlive the call,
  // whatever goes wrong afterwards.
  void bring(DeviceBuffer& to, std::span<const std::byte> host);
  struct RopeHalf {
    std::unique_ptr<DeviceBuffer> device;
    PinnedRoom host;
    std::unique_ptr<DeviceEvent> copied;
  };
  RopeHalf make_rope_half(const Sizes& sizes);
  void bring(RopeHalf& half, std::span<const float> values);
  const AttentionSequence* upload(std::span<const AttentionSequence> sequences);

  std::unique_ptr<DeviceBuffer> hidden_, tables_, best_, ids_;
  HiddenPlace place_;
  int rope_half_;
  // Where sequences and their tables of this step are in tables_, by the places on the host of the
  // sequences and of the first one's table.
  using Tables = std::pair<const AttentionSequence*, std::byte* const*>;
  std::map<Tables, const AttentionSequence*> uploaded_;
  size_t tables_used_ = 0;
  // By key and place of the hidden states; null until it is there a second time, when all that is
  // tried out once has been.
  using RecordingKey = std::pair<int64_t, const float*>;
  std::map<RecordingKey, std::unique_ptr<DeviceRecording>> recordings_;
  std::optional<RecordingKey> recorded_;  // the key of what is being recorded
  PinnedRoom fetched_;
  PinnedRing staging_;
  RopeHalf cos_, sin_;
};

}  // namespace headrace
