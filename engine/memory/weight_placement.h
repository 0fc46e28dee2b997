// Which of a stage's weights stay in memory and which are read from disk in every step.
//
// Each unit's image is cut at a panel border: its first `streamed` bytes are read anew for each
// step, the rest is resident, chosen once and never evicted (a cyclic scan under LRU evicts exactly
// what is needed next). All layers stream the same share, so that reads are even over the sweep.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/memory/weight_layout.h"

namespace headrace {

// Reads of images begin at multiples of this and end there or at the image's end.
inline constexpr uint64_t kReadBlock = 256 << 10;

struct WeightPlacement {
  std::vector<uint64_t> streamed;  // per unit of the layout, at a panel border
  // The ring that streamed pieces are read into: the largest piece, and what is read ahead while
  // all of that one is in use. Multiples of kReadBlock.
  uint64_t piece_bytes = 0;
  uint64_t ahead_bytes = 0;
  uint64_t lookup_bytes = 0;  // where rows of a streamed embedding are read to

  bool all_resident() const { return piece_bytes == 0 && lookup_bytes == 0; }
  // Rows of the embedding are read one by one.
  bool embedding_streamed() const { return lookup_bytes != 0; }
};

// What a sweep acquires at once: bytes [from, to) of a unit's image, at most piece_bytes. A layer
// is one piece; the head is one or more, each with panels [first_panel, end_panel) of its matrix.
struct WeightPiece {
  size_t unit = 0;
  uint64_t from = 0;
  uint64_t to = 0;
  int64_t first_panel = 0;
  int64_t end_panel = 0;
};

// Panels of the embedding that are looked up at once.
inline constexpr int kLookups = 32;

// The most useful placement that takes at most `bytes` of memory for resident weights, ring and
// look-ups (vectors not counted), that reads at most `ahead` bytes ahead; all resident if that
// fits. What is resident, in this order: positions and projections, the head, the same share of
// every layer, the embedding. Where layers are streamed and `keep_head` is false, so is the head.
// Needs smallest_placement(layout).
WeightPlacement place_weights(const WeightLayout& layout, uint64_t bytes, uint64_t ahead,
                              bool keep_head = true);

// Bytes of the placement that streams whatever can be.
uint64_t smallest_placement(const WeightLayout& layout);

// In the order of a step.
std::vector<WeightPiece> pieces_of(const WeightLayout& layout, const WeightPlacement& placement);

// Memory that a placement takes.
uint64_t resident_bytes(const WeightLayout& layout, const WeightPlacement& placement);
inline uint64_t ring_bytes(const WeightPlacement& p) {
  return p.piece_bytes + p.ahead_bytes + p.lookup_bytes;
}
// Bytes that a step reads from disk, look-ups not counted.
uint64_t streamed_bytes(const WeightLayout& layout, const WeightPlacement& placement);

}  // namespace headrace
