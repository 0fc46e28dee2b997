#include "runtime/plan/prediction.h"

#include <algorithm>

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

// Seconds of a step in which the disk has nothing to do: the ring is full, and the head is
// computed more slowly than what there is of it to read.
double waits_for_head(const WeightLayout& layout, const Rates& rates, const StagePlan& plan,
                      double rows) {
  if (!layout.range.is_last) return 0;
  const uint64_t head = layout.units[layout.head_unit()].matrices.front().bytes();
  const double read = static_cast<double>(plan.ring + (streams_head(layout, plan) ? head : 0));
  return std::max(0.0, rates.compute_s(head, rows) - read / rates.disk);
}

}  // namespace

bool streams_head(const WeightLayout& layout, const StagePlan& plan) {
  return layout.range.is_last && plan.placement.streamed[layout.head_unit()] != 0;
}

void predict(const WeightLayout& layout, const Rates& rates, const Round& round, StagePlan& plan) {
  if (rates.byte_s == 0) return;
  const double groups = std::min(round.groups, round.sequences);
  const double rows = round.sequences / groups;  // of a step
  // Over a sequence's life three quarters of its pages are there on average where the prompt is as
  // long as the answer.
  const double pages = 0.75 * static_cast<double>(round.pages);
  const double on_disk = std::max(0.0, pages - static_cast<double>(plan.sizes.kv_pages));
  const auto page = static_cast<double>(round.page_bytes);
  plan.compute_s =
      groups * rates.compute_s(compute_bytes(layout), rows) + pages * page * rates.byte_s;
  if (rates.disk > 0) {
    plan.disk_s = (groups * static_cast<double>(plan.streamed) +
                   (plan.sizes.kv_disk_pages > 0 ? on_disk * page : 0.0)) /
                  rates.disk;
    if (round.overlapped && plan.streamed > 0) {
      plan.disk_s += groups * waits_for_head(layout, rates, plan, rows);
    }
  }
  plan.round_s =
      round.overlapped ? std::max(plan.compute_s, plan.disk_s) : plan.compute_s + plan.disk_s;
  plan.tokens_per_s = round.sequences / plan.round_s;
}

}  // namespace headrace
