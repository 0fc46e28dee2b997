#include "engine/stage_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/ops/attention.h"
#include "engine/ops/linear.h"
#include "engine/ops/vector_ops.h"
#include "engine/timeline.h"

namespace headrace {
namespace {

// Floats per row of each scratch matrix, in the order of the members.
struct ScratchWidths {
  int64_t normed, q, k, v, mixed, gate, up, out;

  explicit ScratchWidths(const ModelConfig& c)
      : normed(std::max(c.d_model, c.d_embed)),
        q(c.q_rows()),
        k(c.kv_rows()),
        v(c.kv_rows()),
        mixed(c.q_rows()),
        gate(c.gated_mlp ? c.d_ffn : 0),
        up(c.d_ffn),
        out(std::max(c.d_model, c.d_embed)) {}
  int64_t sum() const { return normed + q + k + v + mixed + gate + up + out; }
};

}  // namespace

uint64_t StageEngine::scratch_bytes(const ModelConfig& config, int64_t micro_batch_rows) {
  return static_cast<uint64_t>(ScratchWidths(config).sum() * micro_batch_rows) * sizeof(float);
}

StageEngine::StageEngine(const ModelConfig& config, WeightStore& weights, KvStore& kv,
                         const Cpu& cpu, MemoryBudget& budget, int64_t micro_batch_rows)
    : config_(config),
      weights_(weights),
      kv_(kv),
      cpu_(cpu),
      micro_batch_rows_(micro_batch_rows),
      scratch_(budget.allocate(scratch_bytes(config, micro_batch_rows), "activations")) {
  if (!config.learned_positions) frequencies_ = rope_frequencies(config.rope, config.head_dim);
  const ScratchWidths widths(config);
  auto* next = scratch_.as<float>();
  const auto take = [&](int64_t width) {
    return std::exchange(next, next + width * micro_batch_rows);
  };
  normed_ = take(widths.normed);
  q_ = take(widths.q);
  k_ = take(widths.k);
  v_ = take(widths.v);
  mixed_ = take(widths.mixed);
  gate_ = take(widths.gate);
  up_ = take(widths.up);
  out_ = take(widths.out);
}

void StageEngine::embed(std::span<const BatchItem> batch, std::span<const int32_t> tokens,
                        float* hidden) {
  const EmbeddingWeights& w = weights_.embedding();
  std::vector<int64_t> positions;
  for (const BatchItem& item : batch) {
    for (int64_t i = 0; i < item.rows; ++i) positions.push_back(item.first_position + i);
  }
  weights_.look_up(tokens, [&](size_t row, const PackedMatrix& matrix, int64_t matrix_row) {
    float* x = hidden + static_cast<int64_t>(row) * config_.d_model;
    unpack_row(cpu_, matrix, matrix_row, config_.has_projections() ? normed_ : x);
    if (config_.has_projections()) linear(cpu_, normed_, 1, w.project_in, nullptr, x);
    if (config_.learned_positions) {
      unpack_row(cpu_, w.positions, positions[row] + config_.position_offset, out_);
      add(cpu_, x, out_, 1, config_.d_model);
    }
  });
}

void StageEngine::sweep(std::span<const BatchItem> batch, float* hidden) {
  std::vector<int64_t> positions;
  for (const BatchItem& item : batch) {
    kv_.reserve(item.slot, item.first_position + item.rows);
    for (int64_t i = 0; i < item.rows; ++i) positions.push_back(item.first_position + i);
  }
  if (!frequencies_.empty()) rope_.compute(cpu_, frequencies_, positions);

  std::vector<MicroBatch> micro_batches = cut(batch);
  begin_visits(micro_batches);
  const StageRange& range = weights_.range();
  for (int index = range.first_layer; index < range.end_layer; ++index) {
    const LayerWeights& w = weights_.acquire_layer(index);
    for (MicroBatch& micro_batch : micro_batches) {
      const Span span(Track::kCompute, "layer", {Arg::kLayer, index},
                      {Arg::kRows, micro_batch.rows});
      last_use_ = &micro_batch == &micro_batches.back();
      run_layer(w, index - range.first_layer, micro_batch,
                hidden + micro_batch.first_row * config_.d_model);
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
    attention_block(w, layer, batch, x);
    add(cpu_, x, out_, rows, width);
    apply_norm(w.attn_norm, x, rows, x);
    mlp_block(w, rows, x);
    add(cpu_, x, out_, rows, width);
    apply_norm(w.mlp_norm, x, rows, x);
  } else {
    apply_norm(w.attn_norm, x, rows, normed_);
    attention_block(w, layer, batch, normed_);
    add(cpu_, x, out_, rows, width);
    apply_norm(w.mlp_norm, x, rows, normed_);
    mlp_block(w, rows, normed_);
    add(cpu_, x, out_, rows, width);
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
    apply_rope(cpu_, rope_, batch.first_row, q_, rows, config_.n_heads, config_.head_dim);
    apply_rope(cpu_, rope_, batch.first_row, k_, rows, config_.n_kv_heads, config_.head_dim);
  }
  attend(layer, batch);
  project(w.o, mixed_, rows, out_);
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
    store_kv(cpu_, kv_.shape(), sequences, k_, v_);
    attention(cpu_, kv_.shape(), sequences, config_.n_heads, scale, q_, mixed_);
    kv_.release(layer, batch.first_visit + v);
    begin = end;
  }
}

void StageEngine::mlp_block(const LayerWeights& w, int64_t rows, const float* x) {
  const Span span(Track::kCompute, "mlp");
  if (config_.gated_mlp) {
    project(w.gate, x, rows, gate_);
    project(w.up, x, rows, up_);
    silu_multiply(cpu_, gate_, up_, rows, config_.d_ffn);
    project(w.down, gate_, rows, out_);
  } else {
    project(w.up, x, rows, up_);
    relu(cpu_, up_, rows, config_.d_ffn);
    project(w.down, up_, rows, out_);
  }
}

void StageEngine::logits(float* hidden, int64_t rows, float* out) {
  const Span span(Track::kCompute, "head", {Arg::kRows, rows});
  const HeadWeights& w = weights_.head();
  for (int64_t done = 0; done < rows; done += micro_batch_rows_) {
    const int64_t count = std::min(micro_batch_rows_, rows - done);
    float* x = hidden + done * config_.d_model;
    if (config_.has_final_norm) apply_norm(w.final_norm, x, count, x);
    if (config_.has_projections()) {
      linear(cpu_, x, count, w.project_out, nullptr, normed_);
      x = normed_;
    }
    for (int piece = 0; piece < weights_.head_pieces(); ++piece) {
      const HeadPiece p = weights_.acquire_head(piece);
      linear_panels(cpu_, x, count, p.head, nullptr, p.first_panel, p.end_panel,
                    out + done * config_.vocab_size);
      weights_.release_head(piece);
    }
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

void StageEngine::apply_norm(const Norm& norm, const float* x, int64_t rows, float* y) const {
  if (config_.norm == NormKind::kRms) {
    rms_norm(cpu_, x, rows, config_.d_model, norm.weight, config_.norm_eps, y);
  } else {
    layer_norm(cpu_, x, rows, config_.d_model, norm.weight, norm.bias, config_.norm_eps, y);
  }
}

void StageEngine::project(const Linear& w, const float* x, int64_t rows, float* y) {
  weights_.await(w);
  linear(cpu_, x, rows, w.weight, w.bias, y);
  if (last_use_) weights_.done_with(w);
}

}  // namespace headrace
