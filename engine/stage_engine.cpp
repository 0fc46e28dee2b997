#include "engine/stage_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/half.h"
#include "engine/ops/linear.h"
#include "engine/ops/vector_ops.h"
#include "engine/timeline.h"

namespace headrace {
namespace {

// Floats per row of each scratch matrix, so that each begins at a multiple of 16 bytes.
struct ScratchWidths {
  int64_t stream, q, kv, ffn;

  explicit ScratchWidths(const ModelConfig& c)
      : stream(fours(std::max(c.d_model, c.d_embed))),
        q(fours(c.q_rows())),
        kv(fours(c.kv_rows())),
        ffn(fours(c.d_ffn)) {}
  static int64_t fours(int64_t width) { return (width + 3) / 4 * 4; }
  int64_t sum() const { return stream + std::max(2 * q + 2 * kv, ffn); }
  int64_t widest_operand() const { return std::max({stream, q, ffn}); }
};

// Room for quantised rows, where there shall be any.
Buffer int8_room(bool int8, const ModelConfig& config, int64_t micro_batch_rows,
                 MemoryBudget& budget) {
  if (!int8) return {};
  return budget.allocate(StageEngine::int8_bytes(config, micro_batch_rows), "activations");
}

}  // namespace

uint64_t StageEngine::scratch_bytes(const ModelConfig& config, const StageRange& range,
                                    int64_t micro_batch_rows, int64_t logit_rows,
                                    int64_t block_floats) {
  const int64_t layers = ScratchWidths(config).sum() * micro_batch_rows;
  const int64_t head = range.is_last ? block_floats + config.vocab_size * logit_rows : 0;
  return static_cast<uint64_t>(std::max(layers, head)) * sizeof(float);
}

uint64_t StageEngine::int8_bytes(const ModelConfig& config, int64_t micro_batch_rows) {
  const int64_t of_row = (ScratchWidths(config).widest_operand() + kInt8Columns - 1) / kInt8Columns;
  return static_cast<uint64_t>(of_row * int8_blocks(micro_batch_rows)) * sizeof(Int8Block);
}

StageEngine::StageEngine(const ModelConfig& config, WeightStore& weights, KvStore& kv,
                         const Cpu& cpu, MemoryBudget& budget, int64_t micro_batch_rows,
                         int64_t logit_rows, bool int8)
    : config_(config),
      host_weights_(weights),
      weights_(weights),
      kv_(kv),
      cpu_(cpu),
      host_ops_(cpu),
      own_blocks_(int8_room(int8, config, micro_batch_rows, budget)),
      ops_(int8 ? int8_ops_.emplace(cpu, std::span(own_blocks_.as<Int8Block>(),
                                                   own_blocks_.size() / sizeof(Int8Block)))
                : host_ops_),
      micro_batch_rows_(micro_batch_rows),
      block_floats_(ops_.block_floats()),
      own_scratch_(budget.allocate(
          scratch_bytes(config, weights.range(), micro_batch_rows, logit_rows), "activations")),
      scratch_(own_scratch_.as<float>(), own_scratch_.size() / sizeof(float)) {
  divide_scratch();
  host_block_ = block_;
}

StageEngine::StageEngine(const ModelConfig& config, WeightStore& host_weights,
                         WeightSource& weights, KvStore& kv, Ops& ops, std::span<float> scratch,
                         const Cpu& cpu, MemoryBudget& budget, int64_t micro_batch_rows,
                         const HostAttention& host_attention, HiddenPassage* passage)
    : config_(config),
      host_weights_(host_weights),
      weights_(weights),
      kv_(kv),
      cpu_(cpu),
      host_ops_(cpu),
      ops_(ops),
      host_attention_(host_attention),
      passage_(passage),
      micro_batch_rows_(micro_batch_rows),
      block_floats_(ops_.block_floats()),
      scratch_(scratch),
      own_host_block_(budget.allocate(
          static_cast<size_t>(ScratchWidths(config).stream * micro_batch_rows) * sizeof(float),
          "activations")),
      host_block_(own_host_block_.as<float>()) {
  divide_scratch();
}

void StageEngine::divide_scratch() {
  if (!config_.learned_positions) frequencies_ = rope_frequencies(config_.rope, config_.head_dim);
  const ScratchWidths widths(config_);
  float* next = scratch_.data();
  const auto take = [&](int64_t width) {
    return std::exchange(next, next + width * micro_batch_rows_);
  };
  block_ = take(widths.stream);
  float* const shared = next;
  q_ = take(widths.q);
  k_ = take(widths.kv);
  v_ = take(widths.kv);
  mixed_ = take(widths.q);
  next = shared;
  ffn_ = take(widths.ffn);
}

void StageEngine::embed(std::span<const BatchItem> batch, std::span<const int32_t> tokens,
                        float* hidden) {
  const EmbeddingWeights& w = host_weights_.embedding();
  std::vector<int64_t> positions;
  for (const BatchItem& item : batch) {
    for (int64_t i = 0; i < item.rows; ++i) positions.push_back(item.first_position + i);
  }
  if (const EmbeddingTables* const tables = weights_.embedding()) {
    std::vector<int32_t> places;
    for (const int64_t position : positions) {
      if (!config_.learned_positions) break;
      places.push_back(static_cast<int32_t>(position + config_.position_offset));
    }
    if (passes(std::ssize(tokens))) {
      tokens_.assign(tokens.begin(), tokens.end());
      places_ = std::move(places);
    } else {
      embedded_ = ops_.enter(*tables, {tokens, places});
    }
    return;
  }
  // Where operands are f16 the tables are, too, wherever they lie.
  const bool rounds = ops_.operand_bytes() == sizeof(Half);
  const auto row_of = [&](auto i) { return hidden + static_cast<int64_t>(i) * config_.d_model; };
  host_weights_.look_up(tokens,
                        [&](const PackedMatrix& matrix, std::span<const WeightStore::LookUp> rows) {
                          if (config_.has_projections()) {
                            for (const auto& [i, row] : rows) {
                              unpack_rows(cpu_, matrix, {{row, host_block_}}, {.rounded = rounds});
                              linear(cpu_, host_block_, 1, w.project_in, nullptr, row_of(i));
                            }
                            return;
                          }
                          std::vector<RowTarget> targets;
                          for (const auto& [i, row] : rows) targets.push_back({row, row_of(i)});
                          unpack_rows(cpu_, matrix, std::move(targets), {.rounded = rounds});
                        });
  if (!config_.learned_positions) return;
  std::vector<RowTarget> targets;
  for (size_t i = 0; i < positions.size(); ++i) {
    targets.push_back({positions[i] + config_.position_offset, row_of(i)});
  }
  unpack_rows(cpu_, w.positions, std::move(targets), {.rounded = rounds, .added = true});
}

void StageEngine::sweep(std::span<const BatchItem> batch, float* hidden) {
  int64_t rows = 0;
  for (const BatchItem& item : batch) rows += item.rows;
  run_layers(batch, hidden).leave(hidden, rows * config_.d_model);
}

void StageEngine::sweep(std::span<const BatchItem> batch, float* hidden,
                        std::span<const int64_t> rows) {
  run_layers(batch, hidden).leave_rows(hidden, config_.d_model, rows);
}

Ops& StageEngine::run_layers(std::span<const BatchItem> batch, float* hidden) {
  ops_.begin_step();
  std::vector<int64_t> positions;
  for (const BatchItem& item : batch) {
    kv_.reserve(item.slot, item.first_position + item.rows);
    for (int64_t i = 0; i < item.rows; ++i) positions.push_back(item.first_position + i);
  }
  if (!frequencies_.empty()) {
    rope_.compute(cpu_, frequencies_, positions);
    ops_.set_rope(rope_);
  }

  std::vector<MicroBatch> micro_batches = cut(batch);
  begin_visits(micro_batches);
  if (passes(std::ssize(positions))) {
    run_passing(micro_batches, hidden);
    return host_ops_;
  }
  float* x = std::exchange(embedded_, nullptr);
  if (!x) x = ops_.enter(hidden, std::ssize(positions) * config_.d_model);
  // Steps of so many single rows are alike, but for their tables.
  const bool is_alike = weights_.is_fixed() && kv_.is_fixed() && micro_batches.size() == 1 &&
                        std::ssize(batch) == std::ssize(positions);
  if (is_alike) expect(micro_batches.front());
  if (!is_alike || !ops_.repeat(std::ssize(positions))) sweep_layers(micro_batches, x);
  if (is_alike) ops_.end_repeat();
  weights_.prefetch();
  return ops_;
}

void StageEngine::run_passing(std::vector<MicroBatch>& micro_batches, float* hidden) {
  std::vector<int64_t> pieces;
  for (const MicroBatch& m : micro_batches) pieces.push_back(m.rows);
  passage_->begin_sweep(hidden, std::move(pieces), host_weights_.range().layers(),
                        !tokens_.empty());
  sweep_layers(micro_batches, nullptr);
  tokens_.clear();
  weights_.prefetch();
  passage_->end_sweep();
}

// In the first layer they may be a token's still.
float* StageEngine::await_passing(const MicroBatch& batch, bool in_first_layer) {
  float* const x = passage_->acquire();
  if (in_first_layer && !tokens_.empty()) {
    const auto part = [&](std::span<const int32_t> ids) {
      return ids.empty() ? ids : ids.subspan(batch.first_row, batch.rows);
    };
    ops_.embed(*weights_.embedding(), {part(tokens_), part(places_)}, x);
  }
  return x;
}

// Tables that all layers share.
void StageEngine::expect(MicroBatch& batch) {
  for (size_t i = 0; i < batch.items.size(); ++i) {
    batch.sequences[i].pages = kv_.pages(batch.items[i].slot, 0);
  }
  ops_.expect(batch.sequences);
}

void StageEngine::sweep_layers(std::vector<MicroBatch>& micro_batches, float* x) {
  const StageRange& range = host_weights_.range();
  weights_.expect_rows(micro_batches.back().first_row + micro_batches.back().rows);
  for (int index = range.first_layer; index < range.end_layer; ++index) {
    const LayerWeights& w = weights_.acquire_layer(index);
    for (MicroBatch& micro_batch : micro_batches) {
      const Span span(Track::kCompute, "layer", {Arg::kLayer, index},
                      {Arg::kRows, micro_batch.rows});
      last_use_ = &micro_batch == &micro_batches.back();
      float* const its = x ? x + micro_batch.first_row * config_.d_model
                           : await_passing(micro_batch, index == range.first_layer);
      run_layer(w, index - range.first_layer, micro_batch, its);
      if (!x) passage_->release();
    }
    weights_.release_layer(index);
  }
}

void StageEngine::begin_visits(std::vector<MicroBatch>& micro_batches) {
  std::vector<KvVisit> visits;
  for (MicroBatch& m : micro_batches) {
    m.first_visit = visits.size();
    size_t begin = 0;
    for (const size_t end : m.visit_ends) {
      visits.push_back(KvVisit(m.items).subspan(begin, end - begin));
      begin = end;
    }
  }
  kv_.begin_sweep(std::move(visits));
}

void StageEngine::run_layer(const LayerWeights& w, int layer, MicroBatch& batch, float* x) {
  const int64_t rows = batch.rows, width = config_.d_model;
  if (config_.post_norm) {
    attention_block(w, layer, batch, ops_.operand(x, rows, width, block_), x);
    ops_.normalise(row_norm(w.attn_norm), x, rows, x);
    mlp_block(w, rows, ops_.operand(x, rows, width, block_), x);
    ops_.normalise(row_norm(w.mlp_norm), x, rows, x);
  } else {
    auto* const in = reinterpret_cast<Operand*>(block_);
    ops_.normalise(row_norm(w.attn_norm), x, rows, in);
    attention_block(w, layer, batch, in, x);
    ops_.normalise(row_norm(w.mlp_norm), x, rows, in);
    mlp_block(w, rows, in, x);
  }
}

void StageEngine::attention_block(const LayerWeights& w, int layer, MicroBatch& batch,
                                  const Operand* in, float* x) {
  const Span span(Track::kCompute, "attention");
  const int64_t rows = batch.rows;
  project_qkv(w, in, rows);
  if (config_.qk_norm) {
    ops_.normalise(head_norm(w.q_norm), q_, rows * config_.n_heads, q_);
    ops_.normalise(head_norm(w.k_norm), k_, rows * config_.n_kv_heads, k_);
  }
  if (!frequencies_.empty()) {
    ops_.apply_rope(batch.first_row, q_, rows, config_.n_heads, config_.head_dim);
    ops_.apply_rope(batch.first_row, k_, rows, config_.n_kv_heads, config_.head_dim);
  }
  attend(layer, batch);
  project_and_add(w.o, reinterpret_cast<Operand*>(mixed_), rows, x);
}

// The CPU computes while ops do what was queued before: their own visits, and what comes over the
// link for those and for the layers after this one.
void StageEngine::attend(int layer, MicroBatch& batch) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  const bool is_shared = !batch.home_items.empty();
  if (is_shared) host_attention_.rows->send(batch.home_sequences, q_, k_, v_);
  visit(layer, batch, scale);
  if (is_shared) attend_at_home(layer, batch, scale);
}

void StageEngine::attend_at_home(int layer, MicroBatch& batch, float scale) {
  kv_.acquire_at_home(layer, batch.home_items);
  std::vector<AttentionSequence> sequences = batch.home_sequences;
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i].first_row = static_cast<int64_t>(i);
    sequences[i].pages = kv_.pages(batch.home_items[i].slot, layer);
  }
  const HostRows::Rows rows = host_attention_.rows->receive();
  const Span span(Track::kCompute, "attention by the CPU", {Arg::kRows, std::ssize(sequences)});
  host_ops_.attend(kv_.shape(layer), sequences, config_.n_heads, scale, rows.q, rows.k, rows.v,
                   reinterpret_cast<Operand*>(rows.out));
  host_attention_.rows->send_back(reinterpret_cast<Operand*>(mixed_));
}

void StageEngine::visit(int layer, MicroBatch& batch, float scale) {
  size_t begin = 0;
  for (size_t v = 0; v < batch.visit_ends.size(); ++v) {
    const size_t end = batch.visit_ends[v];
    kv_.acquire(layer, batch.first_visit + v);
    for (size_t i = begin; i < end; ++i) {
      batch.sequences[i].pages = kv_.pages(batch.items[i].slot, layer);
    }
    const auto sequences = std::span(batch.sequences).subspan(begin, end - begin);
    ops_.attend(kv_.shape(layer), sequences, config_.n_heads, scale, q_, k_, v_,
                reinterpret_cast<Operand*>(mixed_));
    kv_.release(layer, batch.first_visit + v);
    begin = end;
  }
}

void StageEngine::mlp_block(const LayerWeights& w, int64_t rows, const Operand* in, float* x) {
  const Span span(Track::kCompute, "mlp");
  if (config_.gated_mlp) project(w.gate, in, rows, ffn_);
  for_panels(w.up, [&](const Panels& panels) {
    if (config_.gated_mlp) {
      ops_.gate_panels(in, rows, panels.weight, w.up.bias, panels.first, panels.end, ffn_);
    } else {
      ops_.relu_panels(in, rows, panels.weight, w.up.bias, panels.first, panels.end, ffn_);
    }
  });
  project_and_add(w.down, ops_.activated(ffn_, rows, config_.d_ffn), rows, x);
}

std::vector<StageEngine::MicroBatch> StageEngine::cut(std::span<const BatchItem> batch) const {
  std::vector<MicroBatch> micro_batches;
  int64_t next_row = 0, pages_left = pages_for_the_host(batch);
  for (const BatchItem& item : batch) {
    for (int64_t done = 0; done < item.rows;) {
      if (micro_batches.empty() || micro_batches.back().rows == micro_batch_rows_) {
        micro_batches.emplace_back().first_row = next_row;
      }
      MicroBatch& current = micro_batches.back();
      const int64_t rows = std::min(item.rows - done, micro_batch_rows_ - current.rows);
      if (const int64_t pages = kv_.visiting_pages(item.slot);
          item.rows == 1 && kv_.is_at_home(item.slot) && pages <= pages_left) {
        pages_left -= pages;
        current.home_items.push_back(item);
        current.home_sequences.push_back({current.rows, 1, item.first_position, nullptr});
        current.rows += 1;
      } else {
        add_to(current, {item.slot, item.first_position + done, rows});
      }
      next_row += rows;
      done += rows;
    }
  }
  return micro_batches;
}

// Of the pages in host memory that single rows have, those that the host shall attend to.
int64_t StageEngine::pages_for_the_host(std::span<const BatchItem> batch) const {
  if (!host_attention_.rows) return 0;
  int64_t pages = 0;
  for (const BatchItem& item : batch) {
    if (item.rows == 1) pages += kv_.pages_at_home(item.slot);
  }
  return std::llround(host_attention_.share * static_cast<double>(pages));
}

void StageEngine::add_to(MicroBatch& batch, const BatchItem& item) const {
  const int64_t pages = kv_.visiting_pages(item.slot);
  if (batch.items.empty() || batch.last_visit_pages + pages > kv_.visit_pages()) {
    batch.visit_ends.push_back(batch.items.size());
    batch.last_visit_pages = 0;
  }
  batch.last_visit_pages += pages;
  batch.sequences.push_back({batch.rows, item.rows, item.first_position, nullptr});
  batch.items.push_back(item);
  batch.visit_ends.back() = batch.items.size();
  batch.rows += item.rows;
}

RowNorm StageEngine::row_norm(const Norm& norm) const {
  return {config_.d_model, norm.weight, norm.bias, config_.norm_eps};
}

RowNorm StageEngine::head_norm(const Norm& norm) const {
  return {config_.head_dim, norm.weight, nullptr, config_.norm_eps};
}

void StageEngine::project(const Linear& w, const Operand* x, int64_t rows, float* y) {
  for_panels(w, [&](const Panels& panels) {
    ops_.linear_panels(x, rows, panels.weight, w.bias, panels.first, panels.end, y);
  });
}

void StageEngine::project_qkv(const LayerWeights& w, const Operand* x, int64_t rows) {
  const Projection all[] = {
      {w.q.weight, w.q.bias, q_}, {w.k.weight, w.k.bias, k_}, {w.v.weight, w.v.bias, v_}};
  if (ops_.linear_together(x, rows, all)) return;
  project(w.q, x, rows, q_);
  project(w.k, x, rows, k_);
  project(w.v, x, rows, v_);
}

void StageEngine::project_and_add(const Linear& w, const Operand* x, int64_t rows, float* y) {
  for_panels(w, [&](const Panels& panels) {
    ops_.add_panels(x, rows, panels.weight, w.bias, panels.first, panels.end, block_, y);
  });
}

// As they come.
template <typename Use>
void StageEngine::for_panels(const Linear& w, Use use) {
  for (int64_t done = 0; done < w.weight.panel_count();) {
    const Panels panels = weights_.await(w, done);
    use(panels);
    done = panels.end;
    if (last_use_) weights_.done_with(w, done);
  }
}

}  // namespace headrace
