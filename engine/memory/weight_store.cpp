#include "engine/memory/weight_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace headrace {
namespace {

constexpr uint64_t kDropEvery = 4 << 20;  // bytes of weights

WeightPlacement all_resident(const WeightLayout& layout) {
  WeightPlacement placement;
  placement.streamed.assign(layout.units.size(), 0);
  return placement;
}

// Enough for the disk to be busy while resident parts are copied into place, where there is room.
WeightPlacement loading_ring(const MemoryBudget& budget) {
  WeightPlacement placement;
  const uint64_t blocks = std::clamp<uint64_t>(budget.available() / kReadBlock, 1, 16);
  placement.ahead_bytes = blocks / 2 * kReadBlock;
  placement.piece_bytes = blocks * kReadBlock - placement.ahead_bytes;
  return placement;
}

}  // namespace

WeightStore::WeightStore(const Checkpoint& checkpoint, const StageRange& range,
                         MemoryBudget& budget, std::optional<WeightPlacement> placement)
    : layout_(weight_layout(checkpoint, range)),
      placement_(placement ? *std::move(placement) : all_resident(layout_)),
      vectors_(budget.allocate(vector_bytes(layout_), "weights")) {
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const WeightUnit& unit = layout_.units[u];
    resident_.push_back(budget.allocate(unit.image_bytes - placement_.streamed[u], "weights"));
    for (const PlacedVector& v : unit.vectors) {
      read_vector(checkpoint, v,
                  {vectors_.as<float>() + v.offset, static_cast<size_t>(v.tensor->cols)});
    }
  }
}

WeightStore::WeightStore(const Checkpoint& checkpoint, const StageRange& range,
                         MemoryBudget& budget, ThreadPool& threads, bool drop_cache)
    : WeightStore(checkpoint, range, budget, std::nullopt) {
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const WeightUnit& unit = layout_.units[u];
    const uint64_t at_once = drop_cache ? kDropEvery : unit.image_bytes;
    for (uint64_t from = 0; from < unit.image_bytes; from += at_once) {
      const uint64_t bytes = std::min(at_once, unit.image_bytes - from);
      pack_image(checkpoint, unit, from, {resident_[u].data() + from, bytes}, threads);
      if (drop_cache) drop_sources(checkpoint, unit, from, from + bytes);
    }
    // What the kernel read ahead, beyond the end of one tensor and into another that was done.
    if (drop_cache) drop_sources(checkpoint, unit, 0, unit.image_bytes);
  }
  make_views();
}

WeightStore::WeightStore(const Checkpoint& checkpoint, const StageRange& range,
                         const WeightOffload& offload, MemoryBudget& budget, ThreadPool& threads)
    : WeightStore(checkpoint, range, budget, offload.placement) {
  load_resident(offload, budget, threads);
  file_ = &offload.file;
  if (placement_.piece_bytes > 0) {
    const std::vector<WeightPiece> pieces = pieces_of(layout_, placement_);
    piece_of_unit_.assign(layout_.units.size(), -1);
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].end_panel == 0) {
        piece_of_unit_[pieces[i].unit] = static_cast<int>(i);
      } else if (head_pieces_++ == 0) {
        first_head_piece_ = i;
      }
    }
    stream_.emplace(offload.file, pieces, placement_, offload.make_queue(), budget, threads,
                    offload.ahead);
  }
  if (placement_.embedding_streamed()) {
    lookup_ = budget.allocate(placement_.lookup_bytes, "weight ring");
    lookup_queue_ = offload.make_queue();
  }
  make_views();
}

void WeightStore::load_resident(const WeightOffload& offload, MemoryBudget& budget,
                                ThreadPool& threads) {
  WeightStream loader(offload.file, {}, loading_ring(budget), offload.make_queue(), budget, threads,
                      true);
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const WeightUnit& unit = layout_.units[u];
    const uint64_t streamed = placement_.streamed[u];
    // Rows that are looked up one by one are checked here, once for all.
    const uint64_t from = unit.kind == WeightUnit::Kind::kEmbedding ? 0 : streamed;
    if (from == unit.image_bytes) continue;
    loader.read_through(
        u, from, unit.image_bytes, [&](uint64_t at, std::span<const std::byte> bytes) {
          const uint64_t skip = at < streamed ? std::min<uint64_t>(streamed - at, bytes.size()) : 0;
          if (skip == bytes.size()) return;
          std::memcpy(resident_[u].data() + (at + skip - streamed), bytes.data() + skip,
                      bytes.size() - skip);
        });
  }
}

void WeightStore::make_views() {
  const StageRange& range = layout_.range;
  for (int layer = range.first_layer; layer < range.end_layer; ++layer) {
    layers_.push_back(layer_views(layout_.layer_unit(layer), nullptr));
  }
  if (range.is_first) {
    embedding_.positions = view(0, Role::kPositionEmbedding, nullptr);
    embedding_.project_in = view(0, Role::kProjectIn, nullptr);
  }
  if (range.is_last) {
    const size_t last = layout_.units.size() - 1;
    head_.project_out = view(last, Role::kProjectOut, nullptr);
    head_.final_norm = norm(last, Role::kFinalNorm, Role::kFinalNormBias);
  }
}

PackedMatrix WeightStore::view(size_t unit, Role role, const std::byte* streamed) const {
  const PlacedMatrix* placed = layout_.units[unit].find(role);
  if (!placed) return {};
  PackedMatrix matrix{placed->tensor->dtype, placed->tensor->rows, placed->tensor->cols};
  const uint64_t border = placement_.streamed[unit];
  const std::byte* resident = resident_[unit].data();
  if (placed->offset >= border) {
    matrix.panels = resident + (placed->offset - border);
    return matrix;
  }
  if (streamed) matrix.panels = streamed + placed->offset;
  if (placed->offset + placed->bytes() > border) {
    matrix.split = static_cast<int64_t>((border - placed->offset) / placed->panel_bytes);
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

LayerWeights WeightStore::layer_views(size_t unit, const std::byte* streamed) const {
  const auto linear = [&](Role weight, Role bias) -> Linear {
    const PlacedMatrix* placed = layout_.units[unit].find(weight);
    const uint64_t border = placement_.streamed[unit];
    const bool is_streamed = placed && placed->offset < border;
    return {view(unit, weight, streamed), vector(unit, bias),
            is_streamed ? std::min(placed->offset + placed->bytes(), border) : 0};
  };
  LayerWeights w;
  w.attn_norm = norm(unit, Role::kAttnNorm, Role::kAttnNormBias);
  w.q = linear(Role::kQ, Role::kQBias);
  w.k = linear(Role::kK, Role::kKBias);
  w.v = linear(Role::kV, Role::kVBias);
  w.o = linear(Role::kO, Role::kOBias);
  w.mlp_norm = norm(unit, Role::kMlpNorm, Role::kMlpNormBias);
  w.gate = linear(Role::kGate, Role::kGateBias);
  w.up = linear(Role::kUp, Role::kUpBias);
  w.down = linear(Role::kDown, Role::kDownBias);
  return w;
}

const LayerWeights& WeightStore::acquire_layer(int layer) {
  const size_t unit = layout_.layer_unit(layer);
  LayerWeights& weights = layers_[layer - layout_.range.first_layer];
  if (placement_.streamed[unit] != 0) {
    weights = layer_views(unit, stream_->acquire(piece_of_unit_[unit]));
  }
  return weights;
}

void WeightStore::await(const Linear& linear) {
  if (linear.streamed_end != 0) stream_->await(linear.streamed_end);
}

void WeightStore::done_with(const Linear& linear) {
  if (linear.streamed_end != 0) stream_->done(linear.streamed_end);
}

void WeightStore::release_layer(int layer) {
  const size_t unit = layout_.layer_unit(layer);
  if (placement_.streamed[unit] != 0) stream_->release(piece_of_unit_[unit]);
}

HeadPiece WeightStore::acquire_head(int piece) {
  const size_t unit = layout_.head_unit();
  const PlacedMatrix& placed = layout_.units[unit].matrices.front();
  if (head_pieces_ == 0) return {view(unit, placed.role, nullptr), 0, placed.panels()};
  const WeightPiece& there = stream_->pieces()[first_head_piece_ + piece];
  const std::byte* bytes = stream_->acquire(first_head_piece_ + piece);
  stream_->await(there.to - there.from);
  HeadPiece head{{placed.tensor->dtype, placed.tensor->rows, placed.tensor->cols},
                 there.first_panel,
                 there.end_panel};
  head.head.split = there.first_panel;
  head.head.rest =
      bytes + (static_cast<uint64_t>(there.first_panel) * placed.panel_bytes - there.from);
  return head;
}

void WeightStore::release_head(int piece) {
  if (head_pieces_ != 0) stream_->release(first_head_piece_ + piece);
}

void WeightStore::look_up(std::span<const int32_t> ids, const UseRow& use) {
  if (placement_.embedding_streamed()) return look_up_streamed(ids, use);
  const PackedMatrix tokens = view(0, Role::kTokenEmbedding, nullptr);
  for (size_t i = 0; i < ids.size(); ++i) use(i, tokens, ids[i]);
}

void WeightStore::look_up_streamed(std::span<const int32_t> ids, const UseRow& use) {
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
  for (size_t begin = 0, end = 0; begin < ids.size(); begin = end) {
    panels.clear();
    for (; end < ids.size(); ++end) {
      const int64_t number = ids[end] / kPanelRows;
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
    for (size_t i = begin; i < end; ++i) {
      const PackedMatrix one{placed.tensor->dtype, kPanelRows, placed.tensor->cols,
                             find(ids[i] / kPanelRows)->panel};
      use(i, one, ids[i] % kPanelRows);
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
