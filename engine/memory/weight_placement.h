// Which of a stage's weights stay in memory and which are read from disk in every step.
//
// Each unit's image is cut at a panel border: its first `streamed` bytes are read anew for each
// step, the rest is resident, chosen once and never evicted (a cyclic scan under LRU evicts exactly
// what is needed next). All layers stream the same share, up to a block, so that reads are even
// over the sweep.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/memory/weight_layout.h"

namespace headrace {

// Reads of images begin at multiples of this and end there or at the image's end.
inline constexpr uint64_t kReadBlock = 256 << 10;
constexpr uint64_t whole_blocks(uint64_t bytes) {
  return (bytes + kReadBlock - 1) / kReadBlock * kReadBlock;
}

struct WeightPlacement {
  std::vector<uint64_t> streamed;  // per unit of the layout, at a panel border
  uint64_t ring = 0;               // bytes of the ring that they are read into
  uint64_t lookup_bytes = 0;       // where rows of a streamed embedding are read to
  // Per unit: bytes of its image, up to the end of a matrix or of the image. A device has the
  // matrices after it, which take nothing here and are never read. Empty: it has none.
  std::vector<uint64_t> ends = {};

  bool all_resident() const { return ring == 0 && lookup_bytes == 0; }
  // Some rows of the embedding are read one by one.
  bool embedding_streamed() const { return lookup_bytes != 0; }
  // What of a unit is here.
  uint64_t end_of(const WeightLayout& layout, size_t unit) const {
    return ends.empty() ? layout.units[unit].image_bytes : ends[unit];
  }
};

// What of a unit passes through the ring in a sweep: bytes [0, bytes) of its image, in whole
// kReadBlocks or to the image's end.
struct WeightPiece {
  size_t unit = 0;
  uint64_t bytes = 0;
};

// Panels of the embedding that are looked up at once.
inline constexpr int kLookups = 32;

struct PlacementWishes {
  // How far to read ahead of use, where there is room.
  uint64_t ahead = 0;
  // The ring holds the largest layer's piece beside what is read ahead: several micro-batches pass
  // a layer. Else it holds a few panels, which are used once.
  bool whole_layers = true;
  // The head stays resident where streaming layers is enough. False: the same share of it is
  // streamed as of a layer.
  bool keep_head = true;
};

// The layout without what a device has, see WeightPlacement::ends; the rest of it can be placed.
WeightLayout up_to(const WeightLayout& layout, const std::vector<uint64_t>& ends);

// The most useful placement that takes at most `bytes` of memory for resident weights, ring and
// look-ups (vectors not counted); all resident if that fits. What is resident, in this order:
// positions and projections, the head (see PlacementWishes), the same share of every layer and of
// some a block more, the embedding. Needs smallest_placement(layout, wishes.whole_layers).
WeightPlacement place_weights(const WeightLayout& layout, uint64_t bytes,
                              const PlacementWishes& wishes);

// Bytes of the placement that streams whatever can be.
uint64_t smallest_placement(const WeightLayout& layout, bool whole_layers);

// In the order of a step.
std::vector<WeightPiece> pieces_of(const WeightLayout& layout, const WeightPlacement& placement);

// Memory that a placement takes.
uint64_t resident_bytes(const WeightLayout& layout, const WeightPlacement& placement);
inline uint64_t ring_bytes(const WeightPlacement& p) { return p.ring + p.lookup_bytes; }
// Bytes that a step reads from disk, look-ups not counted.
uint64_t streamed_bytes(const WeightLayout& layout, const WeightPlacement& placement);
// What a step reads for each row that is looked up, on average over the embedding.
double lookup_bytes_per_row(const WeightLayout& layout, const WeightPlacement& placement);

}  // namespace headrace
