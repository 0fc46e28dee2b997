// What a last stage makes of hidden states: logits, and the most likely tokens.
#include <algorithm>
#include <bit>
#include <stdexcept>

#include "engine/ops/linear.h"
#include "engine/stage_engine.h"
#include "engine/timeline.h"

namespace headrace {

// Final norm and projection, in place: rows of d_embed floats (no more than d_model) afterwards.
void StageEngine::before_head(float* hidden, int64_t rows) {
  const HeadWeights& w = host_weights_.head();
  if (config_.has_final_norm) host_ops_.normalise(row_norm(w.final_norm), hidden, rows, hidden);
  if (!config_.has_projections()) return;
  for (int64_t done = 0; done < rows; done += micro_batch_rows_) {
    const int64_t count = std::min(micro_batch_rows_, rows - done);
    linear(cpu_, hidden + done * config_.d_model, count, w.project_out, nullptr, host_block_);
    std::copy_n(host_block_, count * config_.d_embed, hidden + done * config_.d_embed);
  }
}

void StageEngine::head(float* hidden, std::span<BestToken> best, int64_t logit_rows,
                       const UseLogits& use) {
  int64_t best_rows = std::ssize(best);
  if (std::ssize(scratch_) < block_floats_ + (logit_rows > 0 ? config_.vocab_size : 0)) {
    throw std::logic_error("StageEngine: less scratch memory than scratch_bytes()");
  }
  before_head(hidden, best_rows + logit_rows);
  float* const logits = scratch_.data() + block_floats_;
  const int64_t at_once = (std::ssize(scratch_) - block_floats_) / config_.vocab_size;
  const Operand* x = ops_.enter_operand(hidden, best_rows + logit_rows, config_.d_embed);
  if (best_rows > 0) ops_.begin_best(best_rows);
  for (int64_t done = 0; done < logit_rows || best_rows > 0;) {
    const int64_t count = std::min(at_once, logit_rows - done);
    head_pass(x, best_rows, count, logits);
    for (int64_t fetched = 0; fetched < count; fetched += kLogitRows) {
      const int64_t rows = std::min(kLogitRows, count - fetched);
      float* const from = logits + fetched * config_.vocab_size;
      use(done + fetched, rows, ops_.fetch(from, rows * config_.vocab_size));
    }
    x = past(x, (best_rows + count) * config_.d_embed);
    best_rows = 0;
    done += count;
  }
  if (!best.empty()) ops_.take_best(best);
}

const Operand* StageEngine::past(const Operand* x, int64_t elements) const {
  return reinterpret_cast<const Operand*>(reinterpret_cast<const std::byte*>(x) +
                                          elements * ops_.operand_bytes());
}

// x: rows whose best token is wanted, then those whose logits [logit_rows][vocab_size] are.
void StageEngine::head_pass(const Operand* x, int64_t best_rows, int64_t logit_rows,
                            float* logits) {
  const Span span(Track::kCompute, "head", {Arg::kRows, best_rows + logit_rows});
  const Linear& head = weights_.acquire_head();
  const int64_t most_rows = block_floats_ / kPanelRows;
  for (int64_t done = 0; done < head.weight.panel_count();) {
    const Panels panels = weights_.await(head, done);
    for (int64_t row = 0; row < best_rows; row += most_rows) {
      const int64_t rows = std::min(most_rows, best_rows - row);
      best_of_panels(panels, past(x, row * config_.d_embed), row, rows);
    }
    if (logit_rows > 0) {
      ops_.linear_panels(past(x, best_rows * config_.d_embed), logit_rows, panels.weight, nullptr,
                         panels.first, panels.end, logits);
    }
    done = panels.end;
    weights_.done_with(head, done);
  }
  weights_.release_head();
}

// Brings the best tokens of rows x up to date with these panels. However the head is cut, rows of
// logits begin at whole 16 bytes, on which a device's products depend: what of a vocabulary is no
// multiple of four floats goes by itself.
void StageEngine::best_of_panels(const Panels& panels, const Operand* x, int64_t first_row,
                                 int64_t rows) {
  // A power of two: a device tries out products of each new size.
  const auto at_once = static_cast<int64_t>(
      std::bit_floor(static_cast<uint64_t>(block_floats_ / kPanelRows / rows)));
  const PackedMatrix& head = panels.weight;
  const int64_t odd = head.rows % 4 != 0 ? head.panel_count() - 1 : head.panel_count();
  for (int64_t first = panels.first, end = first; first < panels.end; first = end) {
    end = std::min(panels.end, first + at_once);
    if (first < odd) end = std::min(end, odd);
    const PackedMatrix part = head.of_panels(first, end);
    ops_.linear_panels(x, rows, part, nullptr, 0, part.panel_count(), scratch_.data());
    ops_.find_best(scratch_.data(), first_row, rows, part.rows, first * kPanelRows);
  }
}

}  // namespace headrace
