#include "runtime/plan/prediction.h"

#include <algorithm>
#include <cmath>

namespace headrace {
namespace {

// Packed weights that a row passes: all but an embedding that is not the head, too.
uint64_t compute_bytes(const WeightLayout& layout) {
  uint64_t bytes = 0;
  for (const WeightUnit& unit : layout.units) {
    if (unit.kind != WeightUnit::Kind::kEmbedding) bytes += unit.image_bytes;
  }
  if (layout.range.is_last && layout.head_unit() == 0 && layout.range.is_first) {
    bytes += layout.units[0].matrices.front().bytes();
  }
  return bytes;
}

// Seconds of a step in which the disk has nothing to do: the ring is full, and what is resident of
// a layer or the head is computed, or attention.
double disk_idles(const WeightLayout& layout, const Rates& rates, const StagePlan& plan,
                  double rows, double layer_attention_s) {
  const double full_s = static_cast<double>(plan.placement.ring) / rates.disk;
  double seconds = 0;
  const auto add = [&](uint64_t resident, double attention_s = 0) {
    seconds += std::max(0.0, rates.compute_s(resident, rows) + attention_s - full_s);
  };
  for (size_t u = 0; u < layout.units.size(); ++u) {
    const WeightUnit& unit = layout.units[u];
    if (unit.kind != WeightUnit::Kind::kLayer) continue;
    add(unit.image_bytes - plan.placement.streamed[u], layer_attention_s);
  }
  if (layout.range.is_last) {
    const size_t head = layout.head_unit();
    add(layout.units[head].matrices.front().bytes() - plan.placement.streamed[head]);
  }
  return seconds;
}

// Weights that a step of so many rows reads from disk.
double step_bytes(const WeightLayout& layout, const StagePlan& plan, double rows) {
  return static_cast<double>(plan.streamed) + rows * lookup_bytes_per_row(layout, plan.placement);
}

double together(const Round& round, double compute_s, double disk_s) {
  return round.overlapped ? std::max(compute_s, disk_s) : compute_s + disk_s;
}

// Seconds for a token of a prompt, where all prompts together have so many.
double prompt_token_s(const WeightLayout& layout, const Rates& rates, const Round& round,
                      const StagePlan& plan, double tokens) {
  const double rows = std::min(static_cast<double>(plan.sizes.step_rows), tokens);
  const double micro_rows = std::min(static_cast<double>(plan.sizes.micro_batch_rows), rows);
  const double compute_s = rows / micro_rows * rates.compute_s(compute_bytes(layout), micro_rows);
  const double disk_s = rates.disk > 0 ? step_bytes(layout, plan, rows) / rates.disk : 0;
  return together(round, compute_s, disk_s) / rows;
}

double prompt_share(const Round& round) {
  return static_cast<double>(round.prompt) / static_cast<double>(round.tokens);
}

// A step of a group in the middle of its sequences' lives.
struct Middle {
  double groups, rows;
  double layers, layer_s;          // matrices of a layer
  double matrices_s, attention_s;  // of the step
  double kv_read_s = 0;

  Middle(const WeightLayout& layout, const Rates& rates, const Round& round, const StagePlan& plan)
      : layers(layout.range.layers()) {
    const double sequences = round.sequences;
    groups = std::max(std::min<double>(round.groups, sequences),
                      std::ceil(sequences / static_cast<double>(plan.sizes.step_rows)));
    rows = sequences / groups;
    const double passes = std::ceil(rows / static_cast<double>(plan.sizes.micro_batch_rows));
    layer_s = passes * headrace::layer_s(layout, rates, rows / passes);
    matrices_s = passes * rates.compute_s(compute_bytes(layout), rows / passes);
    // While an answer is generated the prompt's pages are there, and half of its own on average.
    // The last page is half full and in memory.
    const double pages = (1 + prompt_share(round)) / 2 * static_cast<double>(round.pages);
    attention_s = layers * pages / groups * rates.attention_s;
    if (rates.disk == 0 || plan.sizes.kv_disk_pages == 0) return;
    const double full = pages - sequences / 2;
    const double on_disk = std::max(0.0, full - static_cast<double>(plan.sizes.kv_pages));
    kv_read_s =
        layers * on_disk / groups * static_cast<double>(round.page_stride) / rates.kv_rate();
  }

  // Seconds of a step in which attention has used up what the staging memory held and waits for the
  // rest: while a layer's matrices are computed, pages come in only as far as there is room.
  double waits_for_kv(const StagePlan& plan, const Round& round, const Rates& rates) const {
    const double staging = static_cast<double>(plan.sizes.kv_staging_pages) *
                           static_cast<double>(round.page_stride) / rates.kv_rate();
    return std::max(0.0, kv_read_s - attention_s - layers * std::min(staging, layer_s));
  }
};

}  // namespace

bool streams_head(const WeightLayout& layout, const StagePlan& plan) {
  return layout.range.is_last && plan.placement.streamed[layout.head_unit()] != 0;
}

double layer_s(const WeightLayout& layout, const Rates& rates, double rows) {
  uint64_t bytes = 0;
  for (const WeightUnit& unit : layout.units) {
    if (unit.kind == WeightUnit::Kind::kLayer) bytes += unit.image_bytes;
  }
  return rates.compute_s(bytes, rows) / layout.range.layers();
}

void predict(const WeightLayout& layout, const Rates& rates, const Round& round, StagePlan& plan) {
  if (rates.byte_s == 0) return;
  plan.tokens = round.tokens;
  plan.prompt = round.prompt;
  const Middle middle(layout, rates, round, plan);
  plan.compute_s = middle.groups * (middle.matrices_s + middle.attention_s);
  double waits_for_kv = 0;
  if (rates.disk > 0) {
    plan.disk_s =
        middle.groups * (step_bytes(layout, plan, middle.rows) / rates.disk + middle.kv_read_s);
    if (round.overlapped && plan.streamed > 0) {
      plan.disk_s += middle.groups * disk_idles(layout, rates, plan, middle.rows,
                                                middle.attention_s / middle.layers);
    }
    waits_for_kv = middle.groups * middle.waits_for_kv(plan, round, rates);
  }
  plan.round_s = round.overlapped ? std::max(plan.compute_s + waits_for_kv, plan.disk_s)
                                  : plan.compute_s + plan.disk_s;
  const double sequences = round.sequences;
  plan.tokens_per_s = sequences / plan.round_s;
  const double prompts = std::max(1.0, sequences * static_cast<double>(round.prompt));
  const double per_answer_token =
      static_cast<double>(round.prompt) / static_cast<double>(round.tokens - round.prompt);
  plan.served_per_s =
      sequences / (plan.round_s + sequences * per_answer_token *
                                      prompt_token_s(layout, rates, round, plan, prompts));
}

}  // namespace headrace
