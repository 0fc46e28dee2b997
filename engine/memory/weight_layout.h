// How the weights of a stage lie in memory and in the offload file.
//
// The weights come in units, in the order a step needs them: the embedding, one unit per layer, the
// head. A unit has an *image*: its matrices in panels, one after the other in the order of use,
// each at a multiple of 64 bytes, the whole padded to 4 KiB. Vectors (norms and biases) are small,
// always in memory, and not part of the image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/ops/packed_matrix.h"
#include "engine/thread_pool.h"

namespace headrace {

// The layers a rank owns. The first stage also holds the embedding, the last one the head.
struct StageRange {
  int first_layer = 0;
  int end_layer = 0;
  bool is_first = true;
  bool is_last = true;

  int layers() const { return end_layer - first_layer; }
};

struct PlacedMatrix {
  Role role = Role::kQ;
  const TensorInfo* tensor = nullptr;  // of the checkpoint
  uint64_t offset = 0;                 // in the unit's image
  size_t panel_bytes = 0;

  int64_t panels() const { return (tensor->rows + kPanelRows - 1) / kPanelRows; }
  uint64_t bytes() const { return static_cast<uint64_t>(panels()) * panel_bytes; }
};

struct PlacedVector {
  Role role = Role::kAttnNorm;
  const TensorInfo* tensor = nullptr;
  uint64_t offset = 0;  // floats from the start of the stage's vectors, a multiple of 16
};

struct WeightUnit {
  enum class Kind { kEmbedding, kLayer, kHead };
  Kind kind = Kind::kLayer;
  int layer = 0;  // kLayer
  std::vector<PlacedMatrix> matrices;
  uint64_t image_bytes = 0;  // a multiple of 4 KiB
  std::vector<PlacedVector> vectors;

  std::string name() const;  // "embedding", "layer 3", "head"
  // Null if the unit has none.
  const PlacedMatrix* find(Role role) const;
  const PlacedVector* find_vector(Role role) const;
};

struct WeightLayout {
  StageRange range;
  std::vector<WeightUnit> units;
  uint64_t vector_floats = 0;
  bool shares_head = false;  // with the embedding

  size_t layer_unit(int layer) const {  // position of the unit of a layer of the range
    return static_cast<size_t>(layer - range.first_layer) + (range.is_first ? 1 : 0);
  }
  // Last stage: the unit whose first matrix is the head's, which is the embedding's if they share.
  size_t head_unit() const { return shares_head ? 0 : units.size() - 1; }

  uint64_t image_bytes() const;  // of all units
};

// The units of a stage. A tied head on the only stage has no matrix of its own: it is the
// embedding's.
WeightLayout weight_layout(const Checkpoint& checkpoint, const StageRange& range);

// Fills out with bytes [from, from + out.size()) of a unit's image, reading the checkpoint; panels
// that lie only partly in the range are packed as a whole and cut. Threads share the panels. Throws
// IoError, and ModelError also for a value that is not finite; of an embedding that is
// no head they are let pass.
void pack_image(const Checkpoint& checkpoint, const WeightUnit& unit, uint64_t from,
                std::span<std::byte> out, ThreadPool& threads);

// Says that the bytes of the checkpoint that [from, to) of a unit's image is made of need not stay
// in the page cache.
void drop_sources(const Checkpoint& checkpoint, const WeightUnit& unit, uint64_t from, uint64_t to);

// out[tensor.cols]: a norm or bias as float32. Throws as pack_image.
void read_vector(const Checkpoint& checkpoint, const PlacedVector& vector, std::span<float> out);

}  // namespace headrace
