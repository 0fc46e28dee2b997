#include "engine/device/device_weights.h"

#include <algorithm>
#include <utility>

namespace headrace {
uint64_t DeviceWeights::slot_bytes(const WeightLayout& layout) {
  uint64_t bytes = 0;
  for (const WeightUnit& unit : layout.units) {
    if (unit.kind == WeightUnit::Kind::kLayer) bytes = std::max(bytes, unit.image_bytes);
  }
  if (!layout.range.is_last) return bytes;
  return std::max<uint64_t>(bytes, layout.units[layout.head_unit()].matrices.front().panel_bytes);
}

DeviceWeights::DeviceWeights(Device& device, DeviceStream& compute, WeightStore& host, int slots)
    : device_(device),
      compute_(compute),
      host_(host),
      slot_bytes_(slot_bytes(host.layout())),
      memory_(device.allocate(slot_bytes_ * static_cast<uint64_t>(slots))),
      copies_(device.make_stream()),
      current_(static_cast<size_t>(slots) - 1) {
  for (int i = 0; i < slots; ++i) {
    slots_.push_back({memory_->data() + slot_bytes_ * static_cast<uint64_t>(i), device.make_event(),
                      device.make_event()});
  }
  const auto vectors = std::as_bytes(host.vectors());
  if (vectors.empty()) return;
  vectors_ = device.allocate(vectors.size());
  device.copy_in(*copies_, vectors_->data(), vectors);
  copies_->synchronize();
}

DeviceWeights::~DeviceWeights() {
  try {
    copies_->synchronize();
    compute_.synchronize();
  } catch (const std::exception&) {
    // What failed was said to who waited for it, and nothing is left that runs.
  }
}

const LayerWeights& DeviceWeights::acquire_layer(int layer) {
  begin_slot();
  const LayerWeights& host = host_.acquire_layer(layer);
  layer_ = host;
  layer_.attn_norm = moved(host.attn_norm);
  layer_.mlp_norm = moved(host.mlp_norm);
  for (const auto matrix : kLayerMatrices) {
    const Linear& from = host.*matrix;
    Linear& to = layer_.*matrix;
    std::byte* const memory = slot().memory + from.offset;
    for (int64_t done = 0; done < from.weight.panel_count();) {
      const Panels panels = host_.await(from, done);
      copy(from, panels, memory + static_cast<size_t>(done) * from.weight.panel_bytes());
      done = panels.end;
    }
    to.weight = {from.weight.dtype, from.weight.rows, from.weight.cols, memory};
    to.bias = moved(from.bias);
    to.streamed = 0;
  }
  finish_copies(0);
  host_.release_layer(layer);
  end_slot();
  return layer_;
}

void DeviceWeights::release_layer(int) { release(); }

const Linear& DeviceWeights::acquire_head() {
  head_ = host_.acquire_head();
  return head_;
}

void DeviceWeights::release_head() {
  finish_copies(0);
  host_.release_head();
}

void DeviceWeights::done_with(const Linear& linear, int64_t) {
  if (&linear == &head_) release();
}

Panels DeviceWeights::await(const Linear& linear, int64_t first) {
  if (&linear != &head_) return {linear.weight, first, linear.weight.panel_count()};
  const Linear& host = host_.head().matrix;
  Panels panels = host_.await(host, first);
  const uint64_t room = slot_bytes_ / host.weight.panel_bytes();
  panels.end = std::min(panels.end, first + static_cast<int64_t>(room));
  begin_slot();
  copy(host, panels, slot().memory);
  end_slot();
  panels.weight.panels = nullptr;
  panels.weight.split = first;
  panels.weight.rest = slot().memory;
  return panels;
}

void DeviceWeights::copy(const Linear& linear, const Panels& panels, std::byte* to) {
  const auto count = static_cast<size_t>(panels.end - panels.first);
  device_.copy_in(*copies_, to,
                  {panels.weight.panel(panels.first), count * panels.weight.panel_bytes()});
  if (panels.first >= linear.streamed) return;  // resident
  leaving_.push_back({&linear, panels.end, take_event()});
  device_.record(*copies_, *leaving_.back().copied);
  finish_copies(1);
}

void DeviceWeights::finish_copies(size_t but) {
  while (leaving_.size() > but) {
    Leaving& first = leaving_.front();
    first.copied->synchronize();
    host_.done_with(*first.linear, first.end);
    events_.push_back(std::move(first.copied));
    leaving_.pop_front();
  }
}

std::unique_ptr<DeviceEvent> DeviceWeights::take_event() {
  if (events_.empty()) return device_.make_event();
  auto event = std::move(events_.back());
  events_.pop_back();
  return event;
}

void DeviceWeights::begin_slot() {
  current_ = (current_ + 1) % slots_.size();
  device_.wait(*copies_, *slot().free);
}

void DeviceWeights::end_slot() {
  device_.record(*copies_, *slot().filled);
  device_.wait(compute_, *slot().filled);
}

void DeviceWeights::release() { device_.record(compute_, *slot().free); }

const float* DeviceWeights::moved(const float* vector) const {
  return vector ? vectors_->as<float>() + (vector - host_.vectors().data()) : nullptr;
}

}  // namespace headrace
