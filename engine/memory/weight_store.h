// The weights of one stage, packed in panels: in memory, or partly on disk and read ahead of use.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/memory/budget.h"
#include "engine/memory/weight_layout.h"
#include "engine/memory/weight_placement.h"
#include "engine/memory/weight_source.h"
#include "engine/memory/weight_stream.h"
#include "engine/ops/packed_matrix.h"
#include "engine/thread_pool.h"

namespace headrace {

struct EmbeddingWeights {
  PackedMatrix positions;   // [max_positions + position_offset][d_model], learned positions only
  PackedMatrix project_in;  // [d_model][d_embed], with projections only
};

struct HeadWeights {
  Norm final_norm;
  PackedMatrix project_out;  // [d_embed][d_model], with projections only
  Linear matrix;             // [vocab_size][d_embed], there between acquire_head and release_head
};

// Where the part of the weights that is not resident comes from.
struct WeightOffload {
  WeightPlacement placement;
  const OffloadFile& file;
  std::function<std::unique_ptr<IoQueue>()> make_queue;
  bool ahead = true;  // false: read when asked for (the serial schedule)
};

// One thread uses a store. What must outlive it: budget, threads, the offload file.
class WeightStore final : public WeightSource {
 public:
  // All in memory: reads and packs the range's tensors, and no others, on all threads. Throws
  // ModelError, IoError, DoesNotFit. `drop_cache`: no more than a few MiB of what is read stay in
  // the page cache, where they count against a memory limit; the next start reads from the disk.
  // `ends`: where images end, for a device has the rest; see WeightPlacement.
  WeightStore(const Checkpoint& checkpoint, const StageRange& range, MemoryBudget& budget,
              ThreadPool& threads, bool drop_cache = false, std::vector<uint64_t> ends = {});
  // Resident parts and all that is streamed come from the offload file, which is checked as it is
  // read for the first time.
  WeightStore(const Checkpoint& checkpoint, const StageRange& range, const WeightOffload& offload,
              MemoryBudget& budget, ThreadPool& threads);

  // Acquiring and awaiting wait for the disk.
  const LayerWeights& acquire_layer(int layer) override;
  void release_layer(int layer) override;
  const Linear& acquire_head() override;
  void release_head() override;
  Panels await(const Linear& linear, int64_t first) override;
  void done_with(const Linear& linear, int64_t end) override;

  // Calls use() so that each i is once in a list: the embedding of ids[i] is this row of the
  // matrix.
  struct LookUp {
    size_t i;
    int64_t row;
  };
  using UseRows = std::function<void(const PackedMatrix& matrix, std::span<const LookUp> rows)>;
  void look_up(std::span<const int32_t> ids, const UseRows& use);

  // Whether acquiring it waits for the disk.
  bool is_streamed(int layer) const { return placement_.streamed[layout_.layer_unit(layer)] != 0; }
  const EmbeddingWeights& embedding() const { return embedding_; }
  const HeadWeights& head() const { return head_; }
  const StageRange& range() const { return layout_.range; }
  const WeightLayout& layout() const { return layout_; }
  // Norms and biases, which the views above point into.
  std::span<const float> vectors() const { return {vectors_.as<float>(), layout_.vector_floats}; }

  // Memory that layers and head are awaited in.
  std::vector<std::span<std::byte>> buffers();

  // What the first constructor will take from the budget.
  static uint64_t bytes_needed(const Checkpoint& checkpoint, const StageRange& range);
  // Memory for vectors, which are always resident.
  static uint64_t vector_bytes(const WeightLayout& layout);

 private:
  WeightStore(const Checkpoint& checkpoint, const StageRange& range, MemoryBudget& budget,
              WeightPlacement placement);

  void load_resident(const WeightOffload& offload, MemoryBudget& budget, ThreadPool& threads);
  void make_views();
  // A matrix of a unit, or what of it is resident.
  PackedMatrix view(size_t unit, Role role) const;
  const float* vector(size_t unit, Role role) const;
  Norm norm(size_t unit, Role weight, Role bias) const;
  Linear linear(size_t unit, Role weight, std::optional<Role> bias) const;
  LayerWeights layer_views(size_t unit) const;
  void look_up_streamed(std::span<const int32_t> ids, const std::vector<size_t>& which,
                        const UseRows& use);

  WeightLayout layout_;
  WeightPlacement placement_;
  Buffer vectors_;                // [vector_floats]
  std::vector<Buffer> resident_;  // per unit: its image from placement_.streamed on
  std::vector<LayerWeights> layers_;
  EmbeddingWeights embedding_;
  HeadWeights head_;
  Buffer lookup_;
  const OffloadFile* file_ = nullptr;
  std::unique_ptr<IoQueue> lookup_queue_;
  std::optional<WeightStream> stream_;
  std::vector<size_t> piece_of_unit_;  // where some of it is streamed
};

}  // namespace headrace
