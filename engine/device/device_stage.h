// What a stage has on its device: weights, KV pages, and room to compute in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/device/device_ops.h"
#include "engine/device/device_weights.h"
#include "engine/device/hidden_window.h"
#include "engine/device/kv_window.h"
#include "engine/device/staged_rows.h"
#include "engine/memory/kv_store.h"

namespace headrace {

// One thread uses it, the one that opened the device.
class DeviceStage {
 public:
  struct Sizes {
    DevicePlacement weights;
    int64_t kv_pages = 0;       // of each layer
    int64_t kv_host_pages = 0;  // of them, in host memory
    int64_t kv_disk_pages = 0;  // and on disk
    int64_t kv_window = 0;  // pages of a layer for which those come; most that a sequence may have
    double host_share = 0;  // of the pages on the host, attended to by the CPU; see HostAttention
    int slots = 1;          // sequences
    int64_t step_rows = 0, micro_batch_rows = 0;
    // Rows whose hidden states are there at once: all of a step, or enough for a HiddenWindow of
    // micro-batches, through which those of longer steps pass; but one for each sequence. 0: all.
    // None pass where there are link buffers.
    int64_t hidden_rows = 0;
    int link_buffers = 0;    // for hidden states that come from or go to another device
    int64_t logit_rows = 1;  // rows whose logits are there at once, at least
    KvFormat kv_format = KvFormat::kF16;
    // Linear layers and attention on the tensor cores; else in float32, with the CPU's bits.
    bool half = true;

    bool has_passing_pages() const { return kv_host_pages + kv_disk_pages > 0; }
    bool has_passing_rows() const {
      return hidden_rows > 0 && std::max<int64_t>(hidden_rows, slots) < step_rows;
    }
    int64_t kv_device_pages() const { return kv_pages - kv_host_pages - kv_disk_pages; }
  };

  static KvPageShape page_shape(const ModelConfig& config, KvFormat format) {
    return {config.n_kv_heads, config.head_dim, format};
  }
  // Bytes of KV pages in host memory, those on their way to and from a disk included, which come
  // out of its budget.
  static uint64_t host_kv_bytes(const ModelConfig& config, const StageRange& range,
                                const Sizes& sizes);
  // Disk that KV pages take.
  static uint64_t disk_kv_bytes(const ModelConfig& config, const StageRange& range,
                                const Sizes& sizes);
  // Rows of a step's hidden states that host memory must have room for: those whose tokens are
  // sampled, where no others are ever there.
  static int64_t host_hidden_rows(const WeightLayout& layout, const Sizes& sizes);
  // Host memory for rows that the CPU attends to.
  static uint64_t host_rows_bytes(const ModelConfig& config, const Sizes& sizes);
  // Host memory for what is small of a step, and for logits.
  static uint64_t host_staging_bytes(const ModelConfig& config, const StageRange& range,
                                     const Sizes& sizes);
  // Device memory that all of it takes.
  static uint64_t bytes_needed(const ModelConfig& config, const WeightLayout& layout,
                               const Sizes& sizes);

  // `host` and `threads` must outlive it; the host's buffers are pinned, and the threads' progress
  // is the device's, too. Loads what is resident. `disk`: where the sizes have pages on one. Throws
  // DoesNotFit, ResourceMissing, ModelError, IoError.
  DeviceStage(std::unique_ptr<Device> device, const Checkpoint& checkpoint, WeightStore& host,
              ThreadPool& threads, MemoryBudget& budget, const Sizes& sizes,
              const KvDiskAccess& disk = {});
  DeviceStage(const DeviceStage&) = delete;
  DeviceStage& operator=(const DeviceStage&) = delete;

  // Pins memory that hidden states come from and go to, as long as this lives.
  void pin(std::span<std::byte> host) { pins_.push_back(device_->pin(host)); }

  WeightSource& weights() { return weights_; }
  Ops& ops() { return *ops_; }
  KvArena kv_on_device() { return {kv_->data(), sizes_.kv_device_pages()}; }
  // Of the pages on host and disk; null if there are none.
  KvPassage* kv_window() { return window_ ? &*window_ : nullptr; }
  // For steps that are too long for the device; null if none are.
  HiddenPassage* hidden_passage() { return hidden_window_ ? &*hidden_window_ : nullptr; }
  HostAttention host_attention() {
    return {host_rows_ ? &*host_rows_ : nullptr, sizes_.host_share};
  }
  // The link buffers, of step_rows rows.
  std::vector<std::byte*> link_memory() const;
  std::span<float> scratch() { return {scratch_->as<float>(), scratch_->size() / sizeof(float)}; }

 private:
  // Devices and streams go after what is of them.
  Sizes sizes_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceStream> compute_;
  Buffer kv_host_;
  std::vector<std::unique_ptr<DevicePin>> pins_;
  DeviceWeights weights_;
  std::unique_ptr<DeviceBuffer> kv_, scratch_;
  std::optional<KvWindow> window_;
  std::optional<StagedRows> host_rows_;
  std::vector<std::unique_ptr<DeviceBuffer>> link_;
  std::unique_ptr<DeviceOps> ops_;
  std::optional<HiddenWindow> hidden_window_;
};

}  // namespace headrace
