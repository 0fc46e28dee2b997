#include "engine/stage_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/ops/linear.h"
#include "engine/ops/vector_ops.h"
#include "engine/timeline.h"

namespace headrace {
namespace {

// Logits of a few panels of the head, which are looked through before the next ones: 512 KiB stay
// in a cache.
constexpr int64_t kBlockFloats = 128 << 10;
constexpr int64_t kMostBlockRows = kBlockFloats / kPanelRows;

// Floats per row of each scratch matrix.
struct ScratchWidths {
  int64_t stream, q, kv, ffn;

  explicit ScratchWidths(const ModelConfig& c)
      : stream(std::max(c.d_model, c.d_embed)), q(c.q_rows()), kv(c.kv_rows()), ffn(c.d_ffn) {}
  int64_t sum() const { return stream + std::max(2 * q + 2 * kv, ffn); }
};

}  // namespace

uint64_t StageEngine::scratch_bytes(const ModelConfig& config, const StageRange& range,
                                    int64_t micro_batch_rows, int64_t logit_rows) {
  const int64_t layers = ScratchWidths(config).sum() * micro_batch_rows;
  const int64_t head = range.is_last ? kBlockFloats + config.vocab_size * logit_rows : 0;
  return static_cast<uint64_t>(std::max(layers, head)) * sizeof(float);
}

StageEngine::StageEngine(const ModelConfig& config, WeightStore& weights, KvStore& kv,
                         const Cpu& cpu, MemoryBudget& budget, int64_t micro_batch_rows,
                         int64_t logit_rows)
    : config_(config),
      host_weights_(weights),
      weights_(weights),
      kv_(kv),
      cpu_(cpu),
      host_ops_(cpu),
      ops_(host_ops_),
      micro_batch_rows_(micro_batch_rows),
      own_scratch_(budget.allocate(
          scratch_bytes(config, weights.range(), micro_batch_rows, logit_rows), "activations")),
      scratch_(own_scratch_.as<float>(), own_scratch_.size() / sizeof(float)) {
  divide_scratch();
  host_block_ = block_;
}

StageEngine::StageEngine(const ModelConfig& config, WeightStore& host_weights,
                         WeightSource& weights, KvStore& kv, Ops& ops, std::span<float> scratch,
                         const Cpu& cpu, MemoryBudget& budget, int64_t micro_batch_rows)
    : config_(config),
      host_weights_(host_weights),
      weights_(weights),
      kv_(kv),
      cpu_(cpu),
      host_ops_(cpu),
      ops_(ops),
      micro_batch_rows_(micro_batch_rows),
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
  host_weights_.look_up(tokens, [&](size_t row, const PackedMatrix& matrix, int64_t matrix_row) {
    float* x = hidden + static_cast<int64_t>(row) * config_.d_model;
    unpack_row(cpu_, matrix, matrix_row, config_.has_projections() ? host_block_ : x);
    if (config_.has_projections()) linear(cpu_, host_block_, 1, w.project_in, nullptr, x);
    if (config_.learned_positions) {
      unpack_row(cpu_, w.positions, positions[row] + config_.position_offset, host_block_);
      add(cpu_, x, host_block_, 1, config_.d_model);
    }
  });
}

void StageEngine::sweep(std::span<const BatchItem> batch, float* hidden) {
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
  const StageRange& range = host_weights_.range();
  const int64_t floats = std::ssize(positions) * config_.d_model;
  float* const x = ops_.enter(hidden, floats);
  for (int index = range.first_layer; index < range.end_layer; ++index) {
    const LayerWeights& w = weights_.acquire_layer(index);
    for (MicroBatch& micro_batch : micro_batches) {
      const Span span(Track::kCompute, "layer", {Arg::kLayer, index},
                      {Arg::kRows, micro_batch.rows});
      last_use_ = &micro_batch == &micro_batches.back();
      run_layer(w, index - range.first_layer, micro_batch,
                x + micro_batch.first_row * config_.d_model);
    }
    weights_.release_layer(index);
  }
  ops_.leave(hidden, floats);
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
    attention_block(w, layer, batch, x);
    ops_.add(x, block_, rows, width);
    apply_norm(ops_, w.attn_norm, x, rows, x);
    mlp_block(w, rows, x);
    ops_.add(x, block_, rows, width);
    apply_norm(ops_, w.mlp_norm, x, rows, x);
  } else {
    apply_norm(ops_, w.attn_norm, x, rows, block_);
    attention_block(w, layer, batch, block_);
    ops_.add(x, block_, rows, width);
    apply_norm(ops_, w.mlp_norm, x, rows, block_);
    mlp_block(w, rows, block_);
    ops_.add(x, block_, rows, width);
  }
}

void StageEngine::attention_block(const LayerWeights& w, int layer, MicroBatch& batch,
                                  const float* x) {
  const Span span(Track::kCompute, "attention");
  const int64_t rows = batch.rows;
  project(w.q, x, rows, q_);
  project(w.k, x, rows, k_);
  project(w.v, x, rows, v_);
  if (!frequencies_.empty()) {
    ops_.apply_rope(batch.first_row, q_, rows, config_.n_heads, config_.head_dim);
    ops_.apply_rope(batch.first_row, k_, rows, config_.n_kv_heads, config_.head_dim);
  }
  attend(layer, batch);
  project(w.o, mixed_, rows, block_);
}

void StageEngine::attend(int layer, MicroBatch& batch) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  size_t begin = 0;
  for (size_t v = 0; v < batch.visit_ends.size(); ++v) {
    const size_t end = batch.visit_ends[v];
    kv_.acquire(layer, batch.first_visit + v);
    for (size_t i = begin; i < end; ++i) {
      batch.sequences[i].pages = kv_.pages(batch.items[i].slot, layer);
    }
    const auto sequences = std::span(batch.sequences).subspan(begin, end - begin);
    ops_.attend(kv_.shape(), sequences, config_.n_heads, scale, q_, k_, v_, mixed_);
    kv_.release(layer, batch.first_visit + v);
    begin = end;
  }
}

void StageEngine::mlp_block(const LayerWeights& w, int64_t rows, const float* x) {
  const Span span(Track::kCompute, "mlp");
  if (config_.gated_mlp) {
    project(w.gate, x, rows, ffn_);
    for_panels(w.up, [&](const Panels& panels) {
      ops_.gate_panels(x, rows, panels.weight, w.up.bias, panels.first, panels.end, ffn_);
    });
  } else {
    project(w.up, x, rows, ffn_);
    ops_.relu(ffn_, rows, config_.d_ffn);
  }
  project(w.down, ffn_, rows, block_);
}

// Final norm and projection, in place: rows of d_embed floats (no more than d_model) afterwards.
void StageEngine::before_head(float* hidden, int64_t rows) {
  const HeadWeights& w = host_weights_.head();
  if (config_.has_final_norm) apply_norm(host_ops_, w.final_norm, hidden, rows, hidden);
  if (!config_.has_projections()) return;
  for (int64_t done = 0; done < rows; done += micro_batch_rows_) {
    const int64_t count = std::min(micro_batch_rows_, rows - done);
    linear(cpu_, hidden + done * config_.d_model, count, w.project_out, nullptr, host_block_);
    std::copy_n(host_block_, count * config_.d_embed, hidden + done * config_.d_embed);
  }
}

void StageEngine::head(float* hidden, std::span<BestToken> best, int64_t logit_rows,
                       const UseLogits& use) {
  before_head(hidden, std::ssize(best) + logit_rows);
  std::fill(best.begin(), best.end(), BestToken{});
  float* const logits = scratch_.data() + kBlockFloats;
  const int64_t at_once = (std::ssize(scratch_) - kBlockFloats) / config_.vocab_size;
  float* x = ops_.enter(hidden, (std::ssize(best) + logit_rows) * config_.d_embed);
  for (int64_t done = 0; done < logit_rows || !best.empty();) {
    const int64_t count = std::min(at_once, logit_rows - done);
    head_pass(x, best, count, logits);
    if (count > 0) use(done, count, ops_.fetch(logits, count * config_.vocab_size));
    x += (std::ssize(best) + count) * config_.d_embed;
    best = {};
    done += count;
  }
}

// x: rows of `best`, then those whose logits [logit_rows][vocab_size] are wanted.
void StageEngine::head_pass(const float* x, std::span<BestToken> best, int64_t logit_rows,
                            float* logits) {
  const Span span(Track::kCompute, "head", {Arg::kRows, std::ssize(best) + logit_rows});
  const Linear& head = weights_.acquire_head();
  const float* const rest = x + std::ssize(best) * config_.d_embed;
  for (int64_t done = 0; done < head.weight.panel_count();) {
    const Panels panels = weights_.await(head, done);
    for (size_t row = 0; row < best.size(); row += kMostBlockRows) {
      best_of_panels(panels, x + static_cast<int64_t>(row) * config_.d_embed,
                     best.subspan(row, std::min<size_t>(kMostBlockRows, best.size() - row)));
    }
    if (logit_rows > 0) {
      ops_.linear_panels(rest, logit_rows, panels.weight, nullptr, panels.first, panels.end,
                         logits);
    }
    done = panels.end;
    weights_.done_with(head, done);
  }
  weights_.release_head();
}

// Brings the best tokens of rows x up to date with these panels.
void StageEngine::best_of_panels(const Panels& panels, const float* x, std::span<BestToken> best) {
  const int64_t rows = std::ssize(best), at_once = kMostBlockRows / rows;
  for (int64_t first = panels.first; first < panels.end; first += at_once) {
    const int64_t end = std::min(panels.end, first + at_once);
    const int64_t id = first * kPanelRows,
                  width = std::min(end * kPanelRows, panels.weight.rows) - id;
    PackedMatrix part{panels.weight.dtype, width, panels.weight.cols, panels.weight.panel(first)};
    ops_.linear_panels(x, rows, part, nullptr, 0, part.panel_count(), scratch_.data());
    const float* const block = ops_.fetch(scratch_.data(), rows * width);
    cpu_.threads.parallel_for(rows, [&](int64_t row) {
      const float* logits = block + row * width;
      BestToken& so_far = best[static_cast<size_t>(row)];
      const int64_t place = cpu_.kernels.argmax(logits, width);
      if (logits[place] > so_far.logit) {
        so_far.logit = logits[place];
        so_far.token = static_cast<int32_t>(id + place);
      }
      bool has_nan = false;
      for (int64_t i = 0; i < width; ++i) has_nan |= std::isnan(logits[i]);
      so_far.has_nan |= has_nan;
    });
  }
}

std::vector<StageEngine::MicroBatch> StageEngine::cut(std::span<const BatchItem> batch) const {
  std::vector<MicroBatch> micro_batches;
  int64_t next_row = 0;
  for (const BatchItem& item : batch) {
    for (int64_t done = 0; done < item.rows;) {
      if (micro_batches.empty() || micro_batches.back().rows == micro_batch_rows_) {
        micro_batches.emplace_back().first_row = next_row;
      }
      MicroBatch& current = micro_batches.back();
      const int64_t rows = std::min(item.rows - done, micro_batch_rows_ - current.rows);
      add_to(current, {item.slot, item.first_position + done, rows});
      next_row += rows;
      done += rows;
    }
  }
  return micro_batches;
}

void StageEngine::add_to(MicroBatch& batch, const BatchItem& item) const {
  const int64_t pages = kv_.disk_pages(item.slot);
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

void StageEngine::apply_norm(Ops& ops, const Norm& norm, const float* x, int64_t rows,
                             float* y) const {
  if (config_.norm == NormKind::kRms) {
    ops.rms_norm(x, rows, config_.d_model, norm.weight, config_.norm_eps, y);
  } else {
    ops.layer_norm(x, rows, config_.d_model, norm.weight, norm.bias, config_.norm_eps, y);
  }
}

void StageEngine::project(const Linear& w, const float* x, int64_t rows, float* y) {
  for_panels(w, [&](const Panels& panels) {
    ops_.linear_panels(x, rows, panels.weight, w.bias, panels.first, panels.end, y);
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
