#include "engine/memory/weight_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine/memory/offload_reader.h"

namespace headrace {
namespace {

constexpr uint64_t kDropEvery = 4 << 20;  // bytes of weights

WeightPlacement all_resident(const WeightLayout& layout, std::vector<uint64_t> ends) {
  WeightPlacement placement;
  placement.streamed.assign(layout.units.size(), 0);
  placement.ends = std::move(ends);
  return placement;
}

}  // namespace

WeightStore::WeightStore(const Checkpoint& checkpoint, const StageRange& range,
                         MemoryBudget& budget, WeightPlacement placement)
    : layout_(weight_layout(checkpoint, range)),
      placement_(std::move(placement)),
      vectors_(budget.allocate(vector_bytes(layout_), "weights")) {
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const WeightUnit& unit = layout_.units[u];
    const uint64_t here = placement_.end_of(layout_, u) - placement_.streamed[u];
    resident_.push_back(budget.allocate(here, "weights"));
    for (const PlacedVector& v : unit.vectors) {
      read_vector(checkpoint, v,
                  {vectors_.as<float>() + v.offset, static_cast<size_t>(v.tensor->cols)});
    }
  }
}

WeightStore::WeightStore(const Checkpoint& checkpoint, const StageRange& range,
                         MemoryBudget& budget, ThreadPool& threads, bool drop_cache,
                         std::vector<uint64_t> ends)
    : WeightStore(checkpoint, range, budget,
                  all_resident(weight_layout(checkpoint, range), std::move(ends))) {
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const uint64_t end = placement_.end_of(layout_, u);
    if (end == 0) continue;
    const WeightUnit& unit = layout_.units[u];
    const uint64_t at_once = drop_cache ? kDropEvery : end;
    for (uint64_t from = 0; from < end; from += at_once) {
      const uint64_t bytes = std::min(at_once, end - from);
      pack_image(checkpoint, unit, from, {resident_[u].data() + from, bytes}, threads);
      if (drop_cache) drop_sources(checkpoint, unit, from, from + bytes);
    }
    // What the kernel read ahead, beyond the end of one tensor and into another that was done.
    if (drop_cache) drop_sources(checkpoint, unit, 0, end);
  }
  make_views();
}

WeightStore::WeightStore(const Checkpoint& checkpoint, const StageRange& range,
                         const WeightOffload& offload, MemoryBudget& budget, ThreadPool& threads)
    : WeightStore(checkpoint, range, budget, offload.placement) {
  load_resident(offload, budget, threads);
  file_ = &offload.file;
  if (placement_.ring != 0) {
    std::vector<WeightPiece> pieces = pieces_of(layout_, placement_);
    piece_of_unit_.resize(layout_.units.size());
    for (size_t i = 0; i < pieces.size(); ++i) piece_of_unit_[pieces[i].unit] = i;
    stream_.emplace(offload.file, std::move(pieces), placement_.ring, offload.make_queue(), budget,
                    threads, offload.ahead);
  }
  if (placement_.embedding_streamed()) {
    lookup_ = budget.allocate(placement_.lookup_bytes, "weight ring");
    lookup_queue_ = offload.make_queue();
  }
  make_views();
}

void WeightStore::load_resident(const WeightOffload& offload, MemoryBudget& budget,
                                ThreadPool& threads) {
  OffloadReader reader(offload.file, offload.make_queue(), budget, threads);
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const WeightUnit& unit = layout_.units[u];
    const uint64_t streamed = placement_.streamed[u];
    // Rows that are looked up one by one are checked here, once for all.
    const uint64_t from = unit.kind == WeightUnit::Kind::kEmbedding ? 0 : streamed;
    const uint64_t end = placement_.end_of(layout_, u);
    if (from >= end) continue;
    const uint64_t to = std::min(whole_blocks(end), unit.image_bytes);
    reader.read(u, from, to, [&](uint64_t at, std::span<const std::byte> bytes) {
      const uint64_t first = std::max(at, streamed), last = std::min(at + bytes.size(), end);
      if (first >= last) return;
      std::memcpy(resident_[u].data() + (first - streamed), bytes.data() + (first - at),
                  last - first);
    });
  }
}

void WeightStore::make_views() {
  const StageRange& range = layout_.range;
  for (int layer = range.first_layer; layer < range.end_layer; ++layer) {
    layers_.push_back(layer_views(layout_.layer_unit(layer)));
  }
  if (range.is_first) {
    embedding_.positions = view(0, Role::kPositionEmbedding);
    embedding_.project_in = view(0, Role::kProjectIn);
  }
  if (range.is_last) {
    const size_t last = layout_.units.size() - 1, unit = layout_.head_unit();
    head_.project_out = view(last, Role::kProjectOut);
    head_.final_norm = norm(last, Role::kFinalNorm, Role::kFinalNormBias);
    head_.matrix = linear(unit, layout_.units[unit].matrices.front().role, std::nullopt);
  }
}

PackedMatrix WeightStore::view(size_t unit, Role role) const {
  const PlacedMatrix* placed = layout_.units[unit].find(role);
  if (!placed) return {};
  PackedMatrix matrix{placed->tensor->dtype, placed->tensor->rows, placed->tensor->cols};
  if (placed->offset >= placement_.end_of(layout_, unit)) return matrix;
  const uint64_t border = placement_.streamed[unit];
  const std::byte* resident = resident_[unit].data();
  if (placed->offset >= border) {
    matrix.panels = resident + (placed->offset - border);
  } else {
    matrix.split = std::min(placed->panels(),
                            static_cast<int64_t>((border - placed->offset) / placed->panel_bytes));
    matrix.rest = resident;
  }
  return matrix;
}

const float* WeightStore::vector(size_t unit, Role role) const {
  const PlacedVector* placed = layout_.units[unit].find_vector(role);
  return placed ? vectors_.as<float>() + placed->offset : nullptr;
}

Norm WeightStore::norm(size_t unit, Role weight, Role bias) const {
  return {vector(unit, weight), vector(unit, bias)};
}

Linear WeightStore::linear(size_t unit, Role weight, std::optional<Role> bias) const {
  Linear result{view(unit, weight), bias ? vector(unit, *bias) : nullptr};
  const PlacedMatrix* placed = layout_.units[unit].find(weight);
  if (!placed) return result;
  result.offset = placed->offset;
  if (placed->offset < placement_.streamed[unit]) result.streamed = result.weight.split;
  return result;
}

LayerWeights WeightStore::layer_views(size_t unit) const {
  LayerWeights w;
  w.attn_norm = norm(unit, Role::kAttnNorm, Role::kAttnNormBias);
  w.q = linear(unit, Role::kQ, Role::kQBias);
  w.k = linear(unit, Role::kK, Role::kKBias);
  w.v = linear(unit, Role::kV, Role::kVBias);
  w.q_norm = {vector(unit, Role::kQNorm), nullptr};
  w.k_norm = {vector(unit, Role::kKNorm), nullptr};
  w.o = linear(unit, Role::kO, Role::kOBias);
  w.mlp_norm = norm(unit, Role::kMlpNorm, Role::kMlpNormBias);
  w.gate = linear(unit, Role::kGate, Role::kGateBias);
  w.up = linear(unit, Role::kUp, Role::kUpBias);
  w.down = linear(unit, Role::kDown, Role::kDownBias);
  return w;
}

const LayerWeights& WeightStore::acquire_layer(int layer) {
  const size_t unit = layout_.layer_unit(layer);
  if (placement_.streamed[unit] != 0) stream_->acquire(piece_of_unit_[unit]);
  return layers_[layer - layout_.range.first_layer];
}

void WeightStore::release_layer(int layer) {
  const size_t unit = layout_.layer_unit(layer);
  if (placement_.streamed[unit] != 0) stream_->release(piece_of_unit_[unit]);
}

const Linear& WeightStore::acquire_head() {
  if (head_.matrix.streamed != 0) stream_->acquire(piece_of_unit_[layout_.head_unit()]);
  return head_.matrix;
}

void WeightStore::release_head() {
  if (head_.matrix.streamed != 0) stream_->release(piece_of_unit_[layout_.head_unit()]);
}

Panels WeightStore::await(const Linear& linear, int64_t first) {
  if (first >= linear.streamed) return {linear.weight, first, linear.weight.panel_count()};
  const uint64_t panel = linear.weight.panel_bytes();
  const uint64_t at = linear.offset + static_cast<uint64_t>(first) * panel;
  const uint64_t there = stream_->await(at + panel) - at;
  // The more at once the better the threads share it; but the other half of the ring fills up.
  const uint64_t count = std::max<uint64_t>(1, std::min(there, placement_.ring / 2) / panel);
  Panels panels{linear.weight, first,
                std::min(linear.streamed, first + static_cast<int64_t>(count))};
  panels.weight.split = first;
  panels.weight.rest = stream_->memory(at);
  return panels;
}

void WeightStore::done_with(const Linear& linear, int64_t end) {
  if (linear.streamed == 0) return;
  const auto panels = static_cast<uint64_t>(std::min(end, linear.streamed));
  stream_->done(linear.offset + panels * linear.weight.panel_bytes());
}

std::vector<std::span<std::byte>> WeightStore::buffers() {
  std::vector<std::span<std::byte>> all;
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const bool is_used = layout_.units[u].kind != WeightUnit::Kind::kEmbedding ||
                         (layout_.range.is_last && layout_.head_unit() == u);
    if (is_used && resident_[u].size() > 0) {
      all.emplace_back(resident_[u].data(), resident_[u].size());
    }
  }
  if (stream_) all.push_back(stream_->buffer());
  return all;
}

void WeightStore::look_up(std::span<const int32_t> ids, const UseRows& use) {
  const PackedMatrix tokens = view(0, Role::kTokenEmbedding);
  const int64_t streamed = placement_.embedding_streamed() ? tokens.split : 0;
  std::vector<LookUp> here;
  std::vector<size_t> on_disk;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] / kPanelRows < streamed) {
      on_disk.push_back(i);
    } else {
      here.push_back({i, ids[i]});
    }
  }
  if (!here.empty()) use(tokens, here);
  if (!on_disk.empty()) look_up_streamed(ids, on_disk, use);
}

void WeightStore::look_up_streamed(std::span<const int32_t> ids, const std::vector<size_t>& which,
                                   const UseRows& use) {
  const PlacedMatrix& placed = layout_.units[0].matrices.front();
  const uint64_t room = placement_.lookup_bytes / kLookups;
  struct Panel {
    int64_t number;
    IoTicket ticket;
    const std::byte* panel;
  };
  std::vector<Panel> panels;
  const auto find = [&](int64_t number) {
    return std::find_if(panels.begin(), panels.end(),
                        [&](const Panel& p) { return p.number == number; });
  };
  for (size_t begin = 0, end = 0; begin < which.size(); begin = end) {
    panels.clear();
    for (; end < which.size(); ++end) {
      const int64_t number = ids[which[end]] / kPanelRows;
      if (find(number) != panels.end()) continue;
      if (panels.size() == kLookups) break;
      const uint64_t from = static_cast<uint64_t>(number) * placed.panel_bytes;
      const uint64_t aligned = from / kIoAlignment * kIoAlignment;
      std::byte* memory = lookup_.data() + panels.size() * room;
      const IoTicket ticket =
          lookup_queue_->read(file_->file(), file_->offset(0) + aligned,
                              {memory, io_aligned(from + placed.panel_bytes) - aligned});
      panels.push_back({number, ticket, memory + (from - aligned)});
    }
    {
      const Wait wait(Wait::kWeights);
      for (const Panel& panel : panels) lookup_queue_->wait(panel.ticket);
    }
    for (size_t n = begin; n < end; ++n) {
      const int32_t id = ids[which[n]];
      const PackedMatrix one{placed.tensor->dtype, kPanelRows, placed.tensor->cols,
                             find(id / kPanelRows)->panel};
      const LookUp row{which[n], id % kPanelRows};
      use(one, {&row, 1});
    }
  }
}

uint64_t WeightStore::vector_bytes(const WeightLayout& layout) {
  return io_aligned(layout.vector_floats * sizeof(float));
}

uint64_t WeightStore::bytes_needed(const Checkpoint& checkpoint, const StageRange& range) {
  const WeightLayout layout = weight_layout(checkpoint, range);
  return layout.image_bytes() + vector_bytes(layout);
}

}  // namespace headrace
