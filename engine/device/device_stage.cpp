#include "engine/device/device_stage.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "engine/device/half_ops.h"
#include "engine/device/timed_device.h"
#include "engine/stage_engine.h"

namespace headrace {
namespace {

constexpr uint64_t kLoadBytes = 64 << 20;  // of weights on their way at once

uint64_t kv_bytes(const ModelConfig& config, const StageRange& range,
                  const DeviceStage::Sizes& sizes) {
  return KvStore::bytes_per_page(DeviceStage::page_shape(config, sizes.kv_format), range.layers()) *
         static_cast<uint64_t>(sizes.kv_device_pages());
}

KvWindow::Sizes window_sizes(const ModelConfig& config, const StageRange& range,
                             const DeviceStage::Sizes& sizes) {
  KvWindow::Sizes window;
  window.stride = DeviceStage::page_shape(config, sizes.kv_format).page_bytes();
  if (sizes.kv_disk_pages > 0) window.stride = io_aligned(window.stride);
  window.layers = range.layers();
  window.homes = KvWindow::homes_for(sizes.kv_host_pages, sizes.slots, window.stride);
  window.room = sizes.has_passing_pages() ? sizes.kv_window : 0;
  window.whole = sizes.host_share > 0 ? (sizes.kv_pages + sizes.slots - 1) / sizes.slots : 0;
  window.disk_homes = KvWindow::homes_for(sizes.kv_disk_pages, sizes.slots, window.stride);
  window.slots = sizes.slots;
  // Of each sequence one page may be full but for a token.
  const int64_t rows = sizes.micro_batch_rows;
  const int64_t filled =
      (rows + (kPageTokens - 1) * std::min<int64_t>(sizes.slots, rows)) / kPageTokens;
  window.filled = std::min(filled, window.room);
  return window;
}

// The system gives memory when it is touched, which pinning would do page by page.
void touch(const Buffer& buffer, ThreadPool& threads) {
  constexpr size_t kPart = size_t{32} << 20;
  auto* const memory = const_cast<std::byte*>(buffer.data());
  threads.parallel_for(static_cast<int64_t>((buffer.size() + kPart - 1) / kPart), [&](int64_t i) {
    const size_t begin = static_cast<size_t>(i) * kPart;
    std::memset(memory + begin, 0, std::min(kPart, buffer.size() - begin));
  });
}

uint64_t scratch_bytes(const ModelConfig& config, const StageRange& range,
                       const DeviceStage::Sizes& sizes) {
  return StageEngine::scratch_bytes(config, range, sizes.micro_batch_rows, sizes.logit_rows,
                                    DeviceOps::kBlockFloats);
}

uint64_t link_buffer_bytes(const ModelConfig& config, const DeviceStage::Sizes& sizes) {
  return static_cast<uint64_t>(sizes.step_rows * config.d_model) * sizeof(float);
}

StagedRows::Sizes host_rows_sizes(const ModelConfig& config, const DeviceStage::Sizes& sizes) {
  const int64_t rows = std::min<int64_t>(sizes.slots, sizes.micro_batch_rows);
  const bool some = sizes.host_share > 0 && sizes.kv_host_pages > 0;
  return {some ? rows : 0, config.q_rows(), config.kv_rows(), sizes.half};
}

HalfOps::Sizes half_sizes(const ModelConfig& config, const StageRange& range,
                          const DeviceStage::Sizes& sizes) {
  HalfOps::Sizes half;
  half.step_rows = sizes.step_rows;
  half.sequences = std::min<int64_t>(sizes.slots, sizes.step_rows);
  half.hidden_rows =
      sizes.has_passing_rows() ? std::max(sizes.hidden_rows, half.sequences) : sizes.step_rows;
  half.width = std::max(config.d_model, config.d_embed);
  half.rope_half = config.learned_positions ? 0 : config.head_dim / 2;
  half.pages = sizes.kv_pages;
  if (range.is_last) {
    half.logits = std::min<int64_t>(sizes.slots, StageEngine::kLogitRows) * config.vocab_size;
  }
  half.micro_batch_rows = sizes.micro_batch_rows;
  half.gated_width = config.gated_mlp ? config.d_ffn : 0;
  half.float_attention_width = sizes.kv_format == KvFormat::kF16 ? 0 : config.q_rows();
  return half;
}

std::unique_ptr<DeviceOps> make_ops(Device& device, DeviceStream& stream, const ModelConfig& config,
                                    const StageRange& range, std::span<std::byte> room,
                                    const DeviceStage::Sizes& sizes) {
  const HalfOps::Sizes half = half_sizes(config, range, sizes);
  if (sizes.half) return std::make_unique<HalfOps>(device, stream, half, room);
  return std::make_unique<DeviceOps>(device, stream, half);
}

}  // namespace

uint64_t DeviceStage::host_kv_bytes(const ModelConfig& config, const StageRange& range,
                                    const Sizes& sizes) {
  return KvWindow::host_bytes(window_sizes(config, range, sizes));
}

uint64_t DeviceStage::disk_kv_bytes(const ModelConfig& config, const StageRange& range,
                                    const Sizes& sizes) {
  return KvWindow::file_bytes(window_sizes(config, range, sizes));
}

int64_t DeviceStage::host_hidden_rows(const WeightLayout& layout, const Sizes& sizes) {
  const bool come_and_go = !layout.range.is_first || !layout.range.is_last ||
                           sizes.has_passing_rows() ||
                           !DeviceWeights::has_embedding(layout, sizes.weights);
  return come_and_go ? sizes.step_rows : std::min<int64_t>(sizes.slots, sizes.step_rows);
}

uint64_t DeviceStage::host_rows_bytes(const ModelConfig& config, const Sizes& sizes) {
  return StagedRows::host_bytes(host_rows_sizes(config, sizes));
}

uint64_t DeviceStage::host_staging_bytes(const ModelConfig& config, const StageRange& range,
                                         const Sizes& sizes) {
  const HalfOps::Sizes half = half_sizes(config, range, sizes);
  // Where pages pass each layer has its own page tables, whose vectors double.
  const int64_t places = sizes.has_passing_pages() ? sizes.kv_pages * range.layers() : 0;
  return DeviceOps::host_bytes(half) + RopeTable::bytes(half.step_rows, half.rope_half) +
         static_cast<uint64_t>(places) * 2 * sizeof(std::byte*);
}

uint64_t DeviceStage::bytes_needed(const ModelConfig& config, const WeightLayout& layout,
                                   const Sizes& sizes) {
  const HalfOps::Sizes half = half_sizes(config, layout.range, sizes);
  return DeviceWeights::bytes_needed(layout, sizes.weights) +
         kv_bytes(config, layout.range, sizes) +
         KvWindow::device_bytes(window_sizes(config, layout.range, sizes)) +
         scratch_bytes(config, layout.range, sizes) +
         static_cast<uint64_t>(sizes.link_buffers) * link_buffer_bytes(config, sizes) +
         DeviceOps::bytes(half) + (sizes.half ? HalfOps::bytes(half) : 0);
}

DeviceStage::DeviceStage(std::unique_ptr<Device> device, const Checkpoint& checkpoint,
                         WeightStore& host, ThreadPool& threads, MemoryBudget& budget,
                         const Sizes& sizes, const KvDiskAccess& disk)
    : sizes_(sizes),
      device_(std::make_unique<TimedDevice>(std::move(device), [&threads] { threads.moved_on(); })),
      compute_(device_->make_stream()),
      weights_(*device_, *compute_, host, sizes.weights),
      kv_(device_->allocate(kv_bytes(checkpoint.config(), host.range(), sizes))),
      scratch_(device_->allocate(scratch_bytes(checkpoint.config(), host.range(), sizes))),
      ops_(make_ops(*device_, *compute_, checkpoint.config(), host.range(), weights_.room(),
                    sizes)) {
  budget.set_aside(host_staging_bytes(checkpoint.config(), host.range(), sizes), "activations");
  for (int i = 0; i < sizes.link_buffers; ++i) {
    link_.push_back(device_->allocate(link_buffer_bytes(checkpoint.config(), sizes)));
  }
  for (const std::span<std::byte> buffer : host.buffers()) pin(buffer);
  if (sizes.has_passing_pages()) {
    kv_host_ = budget.allocate(host_kv_bytes(checkpoint.config(), host.range(), sizes), "KV cache");
    touch(kv_host_, threads);
    pin({kv_host_.data(), kv_host_.size()});
    window_.emplace(*device_, *compute_, kv_host_.data(),
                    window_sizes(checkpoint.config(), host.range(), sizes), disk);
  }
  if (sizes.has_passing_rows()) {
    if (sizes.link_buffers > 0) throw std::logic_error("DeviceStage: rows pass, but on a wire");
    const int64_t width = checkpoint.config().d_model,
                  rows = half_sizes(checkpoint.config(), host.range(), sizes).hidden_rows;
    hidden_window_.emplace(*device_, *compute_,
                           ops_->hidden_room().first(static_cast<size_t>(rows * width)),
                           sizes.micro_batch_rows, width);
  }
  if (const auto rows = host_rows_sizes(checkpoint.config(), sizes); rows.rows > 0) {
    host_rows_.emplace(*device_, *compute_, budget, rows);
  }
  weights_.load(checkpoint, threads, budget, kLoadBytes);
}

std::vector<std::byte*> DeviceStage::link_memory() const {
  std::vector<std::byte*> memory;
  for (const auto& buffer : link_) memory.push_back(buffer->data());
  return memory;
}

}  // namespace headrace
