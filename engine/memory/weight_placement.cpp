#include "engine/memory/weight_placement.h"

#include <algorithm>

#include "engine/io/file.h"

namespace headrace {
namespace {

constexpr uint64_t round_up(uint64_t value) {
  return (value + kReadBlock - 1) / kReadBlock * kReadBlock;
}
constexpr uint64_t round_down(uint64_t value) { return value / kReadBlock * kReadBlock; }

// Where the last panel that begins before `bytes` ends; 0 for 0.
uint64_t panel_border(const WeightUnit& unit, uint64_t bytes) {
  uint64_t border = 0;
  for (const PlacedMatrix& matrix : unit.matrices) {
    if (matrix.offset >= bytes) break;
    const uint64_t panels = (bytes - matrix.offset + matrix.panel_bytes - 1) / matrix.panel_bytes;
    border = matrix.offset + std::min<uint64_t>(panels, static_cast<uint64_t>(matrix.panels())) *
                                 matrix.panel_bytes;
  }
  return border;
}

// What may be streamed of the unit: all of a layer, the first matrix (tokens or head) of another.
uint64_t most_streamed(const WeightUnit& unit) {
  if (unit.kind == WeightUnit::Kind::kLayer) return panel_border(unit, unit.image_bytes);
  if (unit.matrices.empty()) return 0;
  const PlacedMatrix& first = unit.matrices.front();
  return first.role == Role::kTokenEmbedding || first.role == Role::kHead ? first.bytes() : 0;
}

class Placer {
 public:
  Placer(const WeightLayout& layout, uint64_t ahead) : layout_(layout), ahead_(ahead) {}

  // Everything resident but: `share` of each layer; the head and the embedding, if not wanted.
  WeightPlacement place(double share, bool head_resident, bool embedding_resident) const {
    WeightPlacement p;
    p.streamed.assign(layout_.units.size(), 0);
    const bool shared = layout_.range.is_last && layout_.head_unit() == 0 && layout_.range.is_first;
    for (size_t u = 0; u < layout_.units.size(); ++u) {
      const WeightUnit& unit = layout_.units[u];
      const uint64_t most = most_streamed(unit);
      switch (unit.kind) {
        case WeightUnit::Kind::kLayer:
          p.streamed[u] =
              panel_border(unit, static_cast<uint64_t>(share * static_cast<double>(most)));
          p.piece_bytes = std::max(p.piece_bytes, round_up(p.streamed[u]));
          break;
        case WeightUnit::Kind::kEmbedding:
          p.streamed[u] = (shared ? head_resident : embedding_resident) ? 0 : most;
          if (p.streamed[u] != 0) p.lookup_bytes = kLookups * lookup_slot_bytes(unit);
          break;
        case WeightUnit::Kind::kHead:
          p.streamed[u] = head_resident ? 0 : most;
          break;
      }
    }
    if (layout_.range.is_last && p.streamed[layout_.head_unit()] != 0) {
      constexpr uint64_t kUsefulPiece = 4 << 20;
      const uint64_t panel = layout_.units[layout_.head_unit()].matrices.front().panel_bytes;
      p.piece_bytes = std::max({p.piece_bytes, round_up(panel) + 2 * kReadBlock, kUsefulPiece});
    }
    // Two layers are far enough, and the last layer has nothing to read ahead but the first.
    const int pieces = std::clamp(layout_.range.layers() - 2, 0, 2);
    p.ahead_bytes = std::min(round_down(ahead_), static_cast<uint64_t>(pieces) * p.piece_bytes);
    return p;
  }

 private:
  static uint64_t lookup_slot_bytes(const WeightUnit& unit) {
    return io_aligned(unit.matrices.front().panel_bytes) + kIoAlignment;
  }

  const WeightLayout& layout_;
  uint64_t ahead_;
};

}  // namespace

uint64_t resident_bytes(const WeightLayout& layout, const WeightPlacement& placement) {
  uint64_t bytes = 0;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    bytes += io_aligned(layout.units[u].image_bytes - placement.streamed[u]);
  }
  return bytes;
}

uint64_t streamed_bytes(const WeightLayout& layout, const WeightPlacement& placement) {
  uint64_t bytes = 0;
  for (const WeightPiece& piece : pieces_of(layout, placement)) bytes += piece.to - piece.from;
  return bytes;
}

WeightPlacement place_weights(const WeightLayout& layout, uint64_t bytes, uint64_t ahead,
                              bool keep_head) {
  const auto takes = [&](const WeightPlacement& p) {
    return resident_bytes(layout, p) + ring_bytes(p);
  };
  for (const uint64_t tried : {ahead, ahead / 2, uint64_t{0}}) {
    const Placer placer(layout, tried);
    for (const bool embedding : {true, false}) {
      const WeightPlacement all_layers = placer.place(0.0, true, embedding);
      if (takes(all_layers) <= bytes) return all_layers;
    }
    for (const bool head : {true, false}) {
      if (head && !keep_head) continue;
      // The least share of the layers that must be streamed.
      double low = 0.0, high = 1.0;
      if (takes(placer.place(high, head, false)) > bytes) continue;
      for (int i = 0; i < 40; ++i) {
        const double middle = (low + high) / 2;
        (takes(placer.place(middle, head, false)) <= bytes ? high : low) = middle;
      }
      return placer.place(high, head, false);
    }
  }
  return Placer(layout, 0).place(1.0, false, false);
}

uint64_t smallest_placement(const WeightLayout& layout) {
  uint64_t smallest = layout.image_bytes();
  for (const bool head : {true, false}) {
    const WeightPlacement p = Placer(layout, 0).place(1.0, head, false);
    smallest = std::min(smallest, resident_bytes(layout, p) + ring_bytes(p));
  }
  return smallest;
}

std::vector<WeightPiece> pieces_of(const WeightLayout& layout, const WeightPlacement& placement) {
  std::vector<WeightPiece> pieces;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    const WeightUnit& unit = layout.units[u];
    if (unit.kind != WeightUnit::Kind::kLayer || placement.streamed[u] == 0) continue;
    pieces.push_back({u, 0, std::min(round_up(placement.streamed[u]), unit.image_bytes), 0, 0});
  }
  if (!layout.range.is_last || placement.streamed[layout.head_unit()] == 0) return pieces;
  const WeightUnit& unit = layout.units[layout.head_unit()];
  const PlacedMatrix& head = unit.matrices.front();
  const auto panels_per_piece =
      static_cast<int64_t>((placement.piece_bytes - 2 * kReadBlock) / head.panel_bytes);
  for (int64_t first = 0; first < head.panels(); first += panels_per_piece) {
    const int64_t end = std::min(first + panels_per_piece, head.panels());
    const uint64_t from = round_down(static_cast<uint64_t>(first) * head.panel_bytes);
    const uint64_t to = round_up(static_cast<uint64_t>(end) * head.panel_bytes);
    pieces.push_back({layout.head_unit(), from, std::min(to, unit.image_bytes), first, end});
  }
  return pieces;
}

}  // namespace headrace
