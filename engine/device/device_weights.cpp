#include "engine/device/device_weights.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace headrace {
namespace {

constexpr uint64_t kAligned = 256;
constexpr int64_t kHeadRows = 16384;     // of the head, which are expanded at a time
constexpr uint64_t kHeadSlot = 8 << 20;  // for what of a head passes at a time, at least

PackedMatrix resident_matrix(const PlacedMatrix& placed, bool half_rows) {
  PackedMatrix matrix{placed.tensor->dtype, placed.tensor->rows, placed.tensor->cols};
  matrix.half_rows = half_rows && !is_low_bit(matrix.dtype);
  return matrix;
}

uint64_t aligned(uint64_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; }

uint64_t matrix_bytes(const PackedMatrix& matrix) {
  return aligned(static_cast<uint64_t>(matrix.panel_count()) * matrix.panel_bytes());
}

// Of a unit, those that a device may have: not what the host needs for projections.
std::span<const PlacedMatrix> movable(const WeightUnit& unit) {
  size_t count = 0;
  for (const PlacedMatrix& matrix : unit.matrices) {
    if (matrix.role == Role::kProjectIn || matrix.role == Role::kProjectOut) break;
    ++count;
  }
  return std::span(unit.matrices).first(count);
}

// Whether the host needs nothing of a resident unit: not so where it looks tokens up, because an
// embedding is projected, or projects logits.
bool is_whole(const WeightUnit& unit) { return movable(unit).size() == unit.matrices.size(); }

bool looks_up(const WeightUnit& unit) {
  return unit.kind == WeightUnit::Kind::kEmbedding && is_whole(unit);
}

std::span<const PlacedMatrix> staying(const WeightLayout& layout, const DevicePlacement& placement,
                                      size_t unit) {
  const std::span<const PlacedMatrix> all = movable(layout.units[unit]);
  size_t passing = 0;
  while (passing < all.size() && !placement.has(unit, passing)) ++passing;
  return all.subspan(passing);
}

}  // namespace

uint64_t DeviceWeights::host_end(const WeightLayout& layout, const DevicePlacement& placement,
                                 size_t unit) {
  const std::vector<PlacedMatrix>& matrices = layout.units[unit].matrices;
  if (!is_whole(layout.units[unit])) return layout.units[unit].image_bytes;
  uint64_t end = 0;
  for (size_t i = 0; i < matrices.size() && !placement.has(unit, i); ++i) {
    end = matrices[i].offset + matrices[i].bytes();
  }
  return end;
}

uint64_t DeviceWeights::passing_bytes(const WeightLayout& layout,
                                      const DevicePlacement& placement) {
  uint64_t bytes = 0;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    if (layout.units[u].kind == WeightUnit::Kind::kLayer) bytes += host_end(layout, placement, u);
  }
  if (!layout.range.is_last || placement.has(layout.head_unit())) return bytes;
  return bytes + layout.units[layout.head_unit()].matrices.front().bytes();
}

uint64_t DeviceWeights::slot_bytes(const WeightLayout& layout, const DevicePlacement& placement) {
  uint64_t bytes = 0;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    if (layout.units[u].kind != WeightUnit::Kind::kLayer) continue;
    bytes = std::max(bytes, aligned(host_end(layout, placement, u)));
  }
  if (!layout.range.is_last || placement.has(layout.head_unit())) return bytes;
  const PlacedMatrix& head = layout.units[layout.head_unit()].matrices.front();
  return std::max({bytes, head.panel_bytes, std::min(aligned(head.bytes()), kHeadSlot)});
}

// Of the largest layer, where all of what is not rows has its place, or of a part of the head.
uint64_t DeviceWeights::expanded_bytes(const WeightLayout& layout,
                                       const DevicePlacement& placement) {
  uint64_t most = 0;
  if (!placement.half_rows) return most;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    if (layout.units[u].kind != WeightUnit::Kind::kLayer) continue;
    uint64_t bytes = 0;
    for (size_t i = 0; i < layout.units[u].matrices.size(); ++i) {
      const PlacedMatrix& placed = layout.units[u].matrices[i];
      if (placement.has(u, i) && !is_low_bit(placed.tensor->dtype)) continue;
      PackedMatrix rows{placed.tensor->dtype, placed.tensor->rows, placed.tensor->cols};
      rows.half_rows = true;
      bytes += matrix_bytes(rows);
    }
    most = std::max(most, bytes);
  }
  if (!layout.range.is_last) return most;
  const TensorInfo& head = *layout.units[layout.head_unit()].matrices.front().tensor;
  if (placement.has(layout.head_unit()) && !is_low_bit(head.dtype)) return most;
  PackedMatrix part{head.dtype, std::min(head.rows, kHeadRows), head.cols};
  part.half_rows = true;
  return std::max(most, matrix_bytes(part));
}

DeviceWeights::Expansions DeviceWeights::expansions(const WeightLayout& layout,
                                                    const DevicePlacement& placement) {
  Expansions all;
  if (!placement.half_rows) return all;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    const bool is_head = layout.range.is_last && layout.head_unit() == u;
    const bool is_layer = layout.units[u].kind == WeightUnit::Kind::kLayer;
    if (!is_layer && !is_head) continue;
    const size_t count = is_layer ? layout.units[u].matrices.size() : 1;
    for (size_t i = 0; i < count; ++i) {
      const PlacedMatrix& placed = layout.units[u].matrices[i];
      const bool is_plain = !is_low_bit(placed.tensor->dtype);
      if (placement.has(u, i) && is_plain) continue;
      Expansion& expansion = is_plain ? all.plain : all.low_bit;
      expansion.packed += placed.bytes();
      expansion.rows +=
          static_cast<uint64_t>(placed.tensor->rows * placed.tensor->cols) * sizeof(Half);
    }
  }
  return all;
}

uint64_t DeviceWeights::resident_bytes(const WeightLayout& layout,
                                       const DevicePlacement& placement) {
  uint64_t bytes = 0;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    for (const PlacedMatrix& placed : staying(layout, placement, u)) {
      bytes += matrix_bytes(resident_matrix(placed, placement.half_rows));
    }
  }
  return bytes;
}

uint64_t DeviceWeights::bytes_needed(const WeightLayout& layout, const DevicePlacement& placement) {
  return resident_bytes(layout, placement) + WeightStore::vector_bytes(layout) +
         expanded_bytes(layout, placement) +
         slot_bytes(layout, placement) * static_cast<uint64_t>(placement.slots);
}

DeviceWeights::DeviceWeights(Device& device, DeviceStream& compute, WeightStore& host,
                             DevicePlacement placement)
    : device_(device),
      compute_(compute),
      host_(host),
      placement_(std::move(placement)),
      slot_bytes_(slot_bytes(host.layout(), placement_)),
      resident_(host.layout().units.size()),
      memory_(device.allocate(slot_bytes_ * static_cast<uint64_t>(placement_.slots))),
      expanded_(device.allocate(expanded_bytes(host.layout(), placement_))),
      copies_(device.make_stream(Track::kWeightsToGpu)),
      events_(device),
      current_(static_cast<size_t>(placement_.slots) - 1) {
  for (int i = 0; i < placement_.slots; ++i) {
    slots_.push_back({memory_->data() + slot_bytes_ * static_cast<uint64_t>(i), device.make_event(),
                      device.make_event()});
  }
  const auto vectors = std::as_bytes(host.vectors());
  if (vectors.empty()) return;
  vectors_ = device.allocate(vectors.size());
  device.copy_in(*copies_, vectors_->data(), vectors);
  copies_->synchronize();
}

void DeviceWeights::load(const Checkpoint& checkpoint, ThreadPool& threads, MemoryBudget& budget,
                         uint64_t room) {
  const WeightLayout& layout = host_.layout();
  uint64_t panel = 0;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    for (const PlacedMatrix& m : staying(layout, placement_, u)) {
      panel = std::max<uint64_t>(panel, m.panel_bytes);
    }
  }
  if (panel == 0) return;
  Buffer host = budget.allocate(std::max(room, panel), "weights on their way to the device");
  const auto pinned = device_.pin({host.data(), host.size()});
  const auto panels = device_.allocate(host.size());
  for (size_t u = 0; u < layout.units.size(); ++u) {
    const WeightUnit& unit = layout.units[u];
    const std::span<const PlacedMatrix> matrices = staying(layout, placement_, u);
    if (matrices.empty()) continue;
    Resident& resident = resident_[u];
    uint64_t bytes = 0;
    for (const PlacedMatrix& placed : matrices) {
      resident.matrices.push_back(resident_matrix(placed, placement_.half_rows));
      bytes += matrix_bytes(resident.matrices.back());
    }
    resident.memory = device_.allocate(bytes);
    std::byte* to = resident.memory->data();
    for (size_t i = 0; i < resident.matrices.size(); ++i) {
      resident.matrices[i].panels = to;
      load_matrix(checkpoint, unit, matrices[i], threads, {host.data(), host.size()}, *panels, to);
      to += matrix_bytes(resident.matrices[i]);
    }
    if (!looks_up(unit)) continue;
    embedding_ = {resident.matrices.front(), {}, placement_.half_rows};
    if (resident.matrices.size() > 1) embedding_->positions = resident.matrices[1];
  }
}

bool DeviceWeights::has_embedding(const WeightLayout& layout, const DevicePlacement& placement) {
  for (size_t u = 0; u < layout.units.size(); ++u) {
    if (placement.has(u) && looks_up(layout.units[u])) return true;
  }
  return false;
}

// In as many panels at once as `host` has room for.
void DeviceWeights::load_matrix(const Checkpoint& checkpoint, const WeightUnit& unit,
                                const PlacedMatrix& placed, ThreadPool& threads,
                                std::span<std::byte> host, DeviceBuffer& panels, std::byte* to) {
  const PackedMatrix resident = resident_matrix(placed, placement_.half_rows);
  const auto at_once = static_cast<int64_t>(host.size() / placed.panel_bytes);
  for (int64_t first = 0; first < placed.panels(); first += at_once) {
    const int64_t end = std::min(placed.panels(), first + at_once);
    const auto part = host.first(static_cast<size_t>(end - first) * placed.panel_bytes);
    const uint64_t from = placed.offset + static_cast<uint64_t>(first) * placed.panel_bytes;
    pack_image(checkpoint, unit, from, part, threads);
    drop_sources(checkpoint, unit, from, from + part.size());
    std::byte* const at = to + static_cast<size_t>(first) * resident.panel_bytes();
    if (resident.half_rows) {
      device_.copy_in(*copies_, panels.data(), part);
      PackedMatrix packed{resident.dtype, resident.rows, resident.cols};
      packed.split = first;
      packed.rest = panels.data();
      device_.unpack(*copies_, packed, first, end, reinterpret_cast<Half*>(at));
    } else {
      device_.copy_in(*copies_, at, part);
    }
    copies_->synchronize();
  }
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
  const size_t unit = host_.layout().layer_unit(layer);
  layer_slot_.reset();
  if (placement_.has(unit)) {
    layer_ = on_device(unit, host_.acquire_layer(layer), nullptr);
    host_.release_layer(layer);
    if (placement_.half_rows && !stays_packed(layer_)) expand(layer_);
    fill_from(layer + 1, /*from_disk=*/false);
    return layer_;
  }
  if (filled_.empty()) fill(layer);
  Filled& filled = filled_.front();
  if (filled.layer != layer) throw std::logic_error("DeviceWeights: a layer is left out");
  layer_ = filled.weights;
  layer_slot_ = filled.slot;
  filled_.pop_front();
  device_.wait(compute_, *slots_[*layer_slot_].filled);
  if (placement_.half_rows && !stays_packed(layer_)) {
    expand(layer_);
    release_layer(layer);  // the slot is free as soon as that is done
  }
  // Before what is computed with this layer: whoever waits for that, as the CPU's attention does,
  // would hold up the copies of the next ones.
  fill_from(layer + 1, /*from_disk=*/false);
  return layer_;
}

// Queues copies of the layers from this one on that are not queued yet, as slots are free.
void DeviceWeights::fill_from(int layer, bool from_disk) {
  const size_t room = slots_.size() - (layer_slot_ ? 1 : 0);
  if (!filled_.empty()) layer = filled_.back().layer + 1;
  for (; layer < host_.layout().range.end_layer && filled_.size() < room; ++layer) {
    if (placement_.has(host_.layout().layer_unit(layer))) continue;
    if (!from_disk && host_.is_streamed(layer)) return;
    fill(layer);
  }
}

bool DeviceWeights::stays_packed(const LayerWeights& weights) const {
  return few_rows_ && std::ranges::all_of(kLayerMatrices, [&](const auto matrix) {
           const PackedMatrix& w = (weights.*matrix).weight;
           return w.rows == 0 || w.half_rows || is_low_bit(w.dtype);
         });
}

// The stream computes with one layer after the other, so that all have the same place.
void DeviceWeights::expand(LayerWeights& weights) {
  std::byte* to = expanded_->data();
  for (const auto matrix : kLayerMatrices) {
    PackedMatrix& w = (weights.*matrix).weight;
    if (w.rows == 0 || w.half_rows) continue;
    device_.unpack(compute_, w, 0, w.panel_count(), reinterpret_cast<Half*>(to));
    w = {w.dtype, w.rows, w.cols, to};
    w.half_rows = true;
    to += matrix_bytes(w);
  }
}

void DeviceWeights::release_layer(int) {
  if (!layer_slot_) return;
  device_.record(compute_, *slots_[*layer_slot_].free);
  layer_slot_.reset();
}

// Where the head stays in its place nothing else passes between the last layer and the first.
void DeviceWeights::prefetch() {
  const WeightLayout& layout = host_.layout();
  if (layout.range.is_last && !placement_.has(layout.head_unit())) return;
  fill_from(layout.range.first_layer, /*from_disk=*/true);
}

LayerWeights DeviceWeights::on_device(size_t unit, const LayerWeights& host,
                                      std::byte* slot) const {
  LayerWeights weights = host;
  weights.attn_norm = moved(host.attn_norm);
  weights.q_norm = moved(host.q_norm);
  weights.k_norm = moved(host.k_norm);
  weights.mlp_norm = moved(host.mlp_norm);
  size_t i = 0, resident = 0;
  for (const auto matrix : kLayerMatrices) {
    const Linear& from = host.*matrix;
    if (from.weight.rows == 0) continue;
    const PackedMatrix weight = placement_.has(unit, i++)
                                    ? resident_[unit].matrices[resident++]
                                    : PackedMatrix{from.weight.dtype, from.weight.rows,
                                                   from.weight.cols, slot + from.offset};
    (weights.*matrix) = {weight, moved(from.bias), 0, 0};
  }
  return weights;
}

void DeviceWeights::fill(int layer) {
  begin_slot();
  const size_t unit = host_.layout().layer_unit(layer);
  const LayerWeights& host = host_.acquire_layer(layer);
  size_t i = 0;
  for (const auto matrix : kLayerMatrices) {
    const Linear& from = host.*matrix;
    if (from.weight.rows == 0 || placement_.has(unit, i++)) continue;
    std::byte* const memory = slot().memory + from.offset;
    for (int64_t done = 0; done < from.weight.panel_count();) {
      const Panels panels = host_.await(from, done);
      copy(from, panels, memory + static_cast<size_t>(done) * from.weight.panel_bytes());
      done = panels.end;
    }
  }
  finish_copies(0);
  const LayerWeights weights = on_device(unit, host, slot().memory);
  host_.release_layer(layer);
  device_.record(*copies_, *slot().filled);
  filled_.push_back({layer, current_, weights});
}

const Linear& DeviceWeights::acquire_head() {
  if (const size_t unit = host_.layout().head_unit(); placement_.has(unit)) {
    head_ = {resident_[unit].matrices.front(), nullptr, 0, 0};
    return head_;
  }
  head_ = host_.acquire_head();
  return head_;
}

void DeviceWeights::release_head() {
  if (placement_.has(host_.layout().head_unit())) return;
  finish_copies(0);
  host_.release_head();
}

void DeviceWeights::done_with(const Linear& linear, int64_t) {
  if (&linear != &head_ || placement_.has(host_.layout().head_unit())) return;
  device_.record(compute_, *slot().free);
}

Panels DeviceWeights::await(const Linear& linear, int64_t first) {
  if (&linear != &head_ || placement_.has(host_.layout().head_unit())) {
    return {linear.weight, first, linear.weight.panel_count()};
  }
  const Linear& host = host_.head().matrix;
  Panels panels = host_.await(host, first);
  const uint64_t room = slot_bytes_ / host.weight.panel_bytes();
  panels.end = std::min(panels.end, first + static_cast<int64_t>(room));
  begin_slot();
  copy(host, panels, slot().memory);
  device_.record(*copies_, *slot().filled);
  device_.wait(compute_, *slot().filled);
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
  leaving_.push_back({&linear, panels.end, events_.record(*copies_)});
  finish_copies(1);
}

void DeviceWeights::finish_copies(size_t but) {
  while (leaving_.size() > but) {
    Leaving& first = leaving_.front();
    first.copied->synchronize();
    host_.done_with(*first.linear, first.end);
    events_.give_back(std::move(first.copied));
    leaving_.pop_front();
  }
}

void DeviceWeights::begin_slot() {
  current_ = (current_ + 1) % slots_.size();
  device_.wait(*copies_, *slot().free);
}

const float* DeviceWeights::moved(const float* vector) const {
  return vector ? vectors_->as<float>() + (vector - host_.vectors().data()) : nullptr;
}

}  // namespace headrace
