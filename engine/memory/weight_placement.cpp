#include "engine/memory/weight_placement.h"

#include <algorithm>

#include "engine/io/file.h"

namespace headrace {
namespace {

constexpr uint64_t round_down(uint64_t value) { return value / kReadBlock * kReadBlock; }

// Where the last panel that ends within `bytes` does; 0 if none does.
uint64_t panel_border(const WeightUnit& unit, uint64_t bytes) {
  uint64_t border = 0;
  for (const PlacedMatrix& matrix : unit.matrices) {
    if (matrix.offset + matrix.panel_bytes > bytes) break;
    const uint64_t panels = (bytes - matrix.offset) / matrix.panel_bytes;
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

// Of the share of each unit that is streamed; ends below a block also of a unit of 16 GiB.
constexpr int kHalvings = 16;

// `most` of each layer is streamed, but of `lesser` layers, spread over all, only `least`.
struct Shares {
  double most = 0.0, least = 0.0;
  int lesser = 0, layers = 1;

  double of(int layer) const {
    const bool is_lesser = (layer + 1) * lesser / layers > layer * lesser / layers;
    return is_lesser ? least : most;
  }
};

class Placer {
 public:
  Placer(const WeightLayout& layout, uint64_t ahead, bool whole_layers)
      : layout_(layout), ahead_(ahead), whole_layers_(whole_layers) {}

  // Everything resident but: `shares` of the layers, and of the head; the embedding, if not wanted.
  WeightPlacement place(const Shares& shares, bool head_resident, bool embedding_resident) const {
    WeightPlacement p;
    for (const WeightUnit& unit : layout_.units) {
      if (unit.kind == WeightUnit::Kind::kLayer) {
        p.streamed.push_back(part_of(unit, shares.of(unit.layer - layout_.range.first_layer)));
      } else if (layout_.range.is_last && &unit == &layout_.units[layout_.head_unit()]) {
        p.streamed.push_back(head_resident ? 0 : part_of(unit, shares.most));
      } else {
        p.streamed.push_back(embedding_resident ? 0 : most_streamed(unit));
      }
    }
    p.ring = ring(p);
    if (layout_.range.is_first && p.streamed[0] != 0) {
      p.lookup_bytes = kLookups * lookup_slot_bytes(layout_.units[0]);
    }
    return p;
  }

 private:
  // Whole blocks, as it is read in blocks: what else ends in the last one need not be resident.
  static uint64_t part_of(const WeightUnit& unit, double share) {
    const uint64_t most = most_streamed(unit);
    return panel_border(
        unit,
        std::min(most, whole_blocks(static_cast<uint64_t>(share * static_cast<double>(most)))));
  }

  uint64_t ring(const WeightPlacement& p) const {
    uint64_t panel = 0, layer = 0, all = 0;
    for (const WeightPiece& piece : pieces_of(layout_, p)) {
      const WeightUnit& unit = layout_.units[piece.unit];
      for (const PlacedMatrix& matrix : unit.matrices) panel = std::max(panel, matrix.panel_bytes);
      if (unit.kind == WeightUnit::Kind::kLayer) layer = std::max(layer, piece.bytes);
      all += piece.bytes;
    }
    if (all == 0) return 0;
    // One panel is computed with while one comes in, and each ends within a block.
    const uint64_t least = 2 * (whole_blocks(panel) + kReadBlock);
    const uint64_t used = whole_layers_ ? whole_blocks(layer) : 0;
    // More than is read in a step would hold the same bytes twice.
    return std::max(least, used + std::min(round_down(ahead_), whole_blocks(all) - used));
  }

  static uint64_t lookup_slot_bytes(const WeightUnit& unit) {
    return io_aligned(unit.matrices.front().panel_bytes) + kIoAlignment;
  }

  const WeightLayout& layout_;
  uint64_t ahead_;
  bool whole_layers_;
};

uint64_t takes(const WeightLayout& layout, const WeightPlacement& p) {
  return resident_bytes(layout, p) + ring_bytes(p);
}

}  // namespace

WeightLayout up_to(const WeightLayout& layout, const std::vector<uint64_t>& ends) {
  WeightLayout rest = layout;
  for (size_t u = 0; u < ends.size(); ++u) {
    WeightUnit& unit = rest.units[u];
    std::erase_if(unit.matrices, [&](const PlacedMatrix& m) { return m.offset >= ends[u]; });
    unit.image_bytes = std::min(unit.image_bytes, io_aligned(ends[u]));
  }
  return rest;
}

uint64_t resident_bytes(const WeightLayout& layout, const WeightPlacement& placement) {
  uint64_t bytes = 0;
  for (size_t u = 0; u < layout.units.size(); ++u) {
    bytes += io_aligned(layout.units[u].image_bytes - placement.streamed[u]);
  }
  return bytes;
}

uint64_t streamed_bytes(const WeightLayout& layout, const WeightPlacement& placement) {
  uint64_t bytes = 0;
  for (const WeightPiece& piece : pieces_of(layout, placement)) bytes += piece.bytes;
  return bytes;
}

double lookup_bytes_per_row(const WeightLayout& layout, const WeightPlacement& placement) {
  if (!placement.embedding_streamed()) return 0;
  const PlacedMatrix& tokens = layout.units[0].matrices.front();
  return static_cast<double>(placement.lookup_bytes / kLookups) *
         static_cast<double>(placement.streamed[0]) / static_cast<double>(tokens.bytes());
}

WeightPlacement place_weights(const WeightLayout& layout, uint64_t bytes,
                              const PlacementWishes& wishes) {
  for (const uint64_t ahead : {wishes.ahead, wishes.ahead / 2, uint64_t{0}}) {
    const Placer placer(layout, ahead, wishes.whole_layers);
    for (const bool embedding : {true, false}) {
      const WeightPlacement all_layers = placer.place({}, true, embedding);
      if (takes(layout, all_layers) <= bytes) return all_layers;
    }
    for (const bool head : {true, false}) {
      if (head && !wishes.keep_head) continue;
      const int layers = layout.range.layers();
      const auto fits = [&](const Shares& shares) {
        return takes(layout, placer.place(shares, head, false)) <= bytes;
      };
      // The least share of the layers that must be streamed.
      double low = 0.0, high = 1.0;
      if (!fits({high, high, 0, layers})) continue;
      for (int i = 0; i < kHalvings; ++i) {
        const double middle = (low + high) / 2;
        (fits({middle, middle, 0, layers}) ? high : low) = middle;
      }
      // All layers with a block less do not fit, but some of them may.
      int lesser = 0, too_many = layers;
      while (too_many - lesser > 1) {
        const int middle = (lesser + too_many) / 2;
        (fits({high, low, middle, layers}) ? lesser : too_many) = middle;
      }
      return placer.place({high, low, lesser, layers}, head, false);
    }
  }
  return Placer(layout, 0, wishes.whole_layers).place({1.0, 1.0}, false, false);
}

uint64_t smallest_placement(const WeightLayout& layout, bool whole_layers) {
  uint64_t smallest = layout.image_bytes();
  for (const bool head : {true, false}) {
    const WeightPlacement p = Placer(layout, 0, whole_layers).place({1.0, 1.0}, head, false);
    smallest = std::min(smallest, takes(layout, p));
  }
  return smallest;
}

std::vector<WeightPiece> pieces_of(const WeightLayout& layout, const WeightPlacement& placement) {
  std::vector<WeightPiece> pieces;
  const auto add = [&](size_t unit) {
    const uint64_t streamed = placement.streamed[unit];
    if (streamed == 0) return;
    pieces.push_back({unit, std::min(whole_blocks(streamed), layout.units[unit].image_bytes)});
  };
  for (size_t u = 0; u < layout.units.size(); ++u) {
    if (layout.units[u].kind == WeightUnit::Kind::kLayer) add(u);
  }
  if (layout.range.is_last) add(layout.head_unit());
  return pieces;
}

}  // namespace headrace
