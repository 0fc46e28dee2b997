#include "engine/memory/weight_placement.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/checkpoint/checkpoint.h"
#include "engine/io/file.h"

namespace headrace {
namespace {

constexpr uint64_t kAhead = 8 << 20;

struct Case {
  std::string model;
  StageRange range;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " layers " << c.range.first_layer << " to " << c.range.end_layer;
}

// Tied and untied heads, projections, big and tiny layers, first, middle and last stages.
const Case kCases[] = {
    {"synthetic:qwen2.5-0.5b:q8", {0, 24, true, true}},
    {"synthetic:qwen2.5-0.5b:q8", {0, 10, true, false}},
    {"synthetic:qwen2.5-0.5b:q8", {10, 20, false, false}},
    {"synthetic:qwen2.5-0.5b:q8", {20, 24, false, true}},
    {"synthetic:qwen2.5-7b:q4", {0, 28, true, true}},
    {"synthetic:opt-350m:f16", {0, 24, true, true}},
    {"synthetic:opt-350m:f16", {20, 24, false, true}},
    {"synthetic:opt-6.7b:q4", {31, 32, false, true}},
    {"synthetic:tiny-opt", {0, 3, true, true}},
};

class WeightPlacementTest : public testing::TestWithParam<Case> {
 protected:
  const std::unique_ptr<Checkpoint> model_ = Checkpoint::open(GetParam().model);
  const WeightLayout layout_ = weight_layout(*model_, GetParam().range);

  uint64_t takes(const WeightPlacement& p) const {
    return resident_bytes(layout_, p) + ring_bytes(p);
  }

  void expect_room_in_ring(const WeightPlacement& p, bool whole_layers) const {
    EXPECT_EQ(p.ring % kReadBlock, 0u);
    for (const WeightPiece& piece : pieces_of(layout_, p)) {
      const WeightUnit& unit = layout_.units[piece.unit];
      for (const PlacedMatrix& matrix : unit.matrices) {
        if (matrix.offset >= p.streamed[piece.unit]) continue;
        EXPECT_GE(p.ring, 2 * matrix.panel_bytes);
      }
      if (whole_layers && unit.kind == WeightUnit::Kind::kLayer) {
        EXPECT_GE(p.ring, piece.bytes);
      }
    }
  }
};

TEST_P(WeightPlacementTest, KeepsItsBudgetFromTheSmallestToAll) {
  for (const bool whole_layers : {false, true}) {
    const uint64_t least = smallest_placement(layout_, whole_layers), all = layout_.image_bytes();
    ASSERT_LE(least, all);
    WeightPlacement before;
    for (int i = 0; i <= 40; ++i) {
      const uint64_t budget = least + (all - least) * static_cast<uint64_t>(i) / 40;
      for (const uint64_t ahead : {uint64_t{0}, kAhead / 4, kAhead}) {
        for (const bool keep_head : {false, true}) {
          const WeightPlacement p =
              place_weights(layout_, budget, {ahead, whole_layers, keep_head});
          EXPECT_LE(takes(p), budget) << i << "/40 of the way, " << ahead << " ahead";
          EXPECT_EQ(p.all_resident(), resident_bytes(layout_, p) == layout_.image_bytes());
          if (p.ring > 0) {
            expect_room_in_ring(p, whole_layers);
          }
          if (ahead != kAhead / 4 || !keep_head) continue;
          // More memory, less to read, where it does not pay for reading further ahead or a
          // resident head. (Up to a panel, and a block at the end of a piece.)
          const uint64_t grain = layout_.units.size() * 4 * kReadBlock;
          if (i > 0 && p.ring <= before.ring && p.streamed.back() == before.streamed.back()) {
            EXPECT_LE(streamed_bytes(layout_, p), streamed_bytes(layout_, before) + grain) << i;
          }
          before = p;
        }
      }
    }
    const WeightPlacement resident = place_weights(layout_, all, {kAhead, whole_layers, true});
    EXPECT_TRUE(resident.all_resident());
    EXPECT_EQ(streamed_bytes(layout_, resident), 0u);
  }
}

TEST_P(WeightPlacementTest, EveryByteOfAMatrixIsResidentOrRead) {
  for (const int percent : {0, 10, 35, 60, 90, 99}) {
    for (const bool keep_head : {false, true}) {
      const uint64_t least = smallest_placement(layout_, false);
      const uint64_t budget = least + (layout_.image_bytes() - least) * percent / 100;
      const WeightPlacement p = place_weights(layout_, budget, {kAhead, false, keep_head});
      const std::vector<WeightPiece> pieces = pieces_of(layout_, p);
      for (size_t u = 0; u < layout_.units.size(); ++u) {
        const WeightUnit& unit = layout_.units[u];
        EXPECT_LE(p.streamed[u], unit.image_bytes);
        const auto piece = std::find_if(pieces.begin(), pieces.end(),
                                        [&](const WeightPiece& each) { return each.unit == u; });
        const bool is_head = layout_.range.is_last && layout_.head_unit() == u;
        const bool swept = unit.kind == WeightUnit::Kind::kLayer || is_head;
        ASSERT_EQ(piece != pieces.end(), p.streamed[u] != 0 && swept) << unit.name();
        if (unit.kind == WeightUnit::Kind::kEmbedding) {
          EXPECT_EQ(p.embedding_streamed(), p.streamed[u] != 0);
        }
        if (p.streamed[u] == 0) continue;
        // A border lies between panels.
        const bool between =
            std::any_of(unit.matrices.begin(), unit.matrices.end(), [&](const PlacedMatrix& m) {
              return p.streamed[u] > m.offset && p.streamed[u] <= m.offset + m.bytes() &&
                     (p.streamed[u] - m.offset) % m.panel_bytes == 0;
            });
        EXPECT_TRUE(between) << unit.name();
        if (!swept) continue;
        EXPECT_GE(piece->bytes, p.streamed[u]) << unit.name();
        EXPECT_TRUE(piece->bytes % kReadBlock == 0 || piece->bytes == unit.image_bytes);
        EXPECT_LT(piece->bytes, p.streamed[u] + kReadBlock) << unit.name();
      }
    }
  }
}

// No memory is left that would save reading a block more.
TEST_P(WeightPlacementTest, LeavesLessThanABlockUnused) {
  const uint64_t least = smallest_placement(layout_, false), all = layout_.image_bytes();
  for (int i = 1; i < 40; ++i) {
    const uint64_t budget = least + (all - least) * static_cast<uint64_t>(i) / 40;
    const WeightPlacement p = place_weights(layout_, budget, {0, false, false});
    // A head that is streamed grows with the share, the embedding comes or goes as a whole.
    uint64_t layers = 0, grain = 0;
    for (size_t u = 0; u < layout_.units.size(); ++u) {
      const WeightUnit& unit = layout_.units[u];
      if (unit.kind == WeightUnit::Kind::kLayer) layers += p.streamed[u];
      for (const PlacedMatrix& m : unit.matrices) grain = std::max<uint64_t>(grain, m.panel_bytes);
    }
    const bool head_moves = layout_.range.is_last;
    if (layers == 0 || head_moves) continue;
    EXPECT_GT(takes(p) + 2 * (grain + kReadBlock), budget) << i << "/40 of the way";
  }
}

// Up to the block that is read and the panel that ends in it.
TEST_P(WeightPlacementTest, LayersStreamTheSameShare) {
  const uint64_t least = smallest_placement(layout_, false);
  const WeightPlacement p =
      place_weights(layout_, (least + layout_.image_bytes()) / 2, {kAhead, false, true});
  double low = 1.0, high = 0.0, grain = 0.0;
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    const WeightUnit& unit = layout_.units[u];
    if (unit.kind != WeightUnit::Kind::kLayer) continue;
    const double share = static_cast<double>(p.streamed[u]) / static_cast<double>(unit.image_bytes);
    low = std::min(low, share);
    high = std::max(high, share);
    for (const PlacedMatrix& m : unit.matrices) {
      const uint64_t bytes = m.panel_bytes + kReadBlock;
      grain = std::max(grain, static_cast<double>(bytes) / static_cast<double>(unit.image_bytes));
    }
  }
  EXPECT_LE(high - low, grain);
}

// A device has the head and the last matrices of layers: the rest is placed as if there were no
// others, and no other unit is taken for the head.
TEST_P(WeightPlacementTest, WhatADeviceHasIsNotPlaced) {
  const StageRange& range = GetParam().range;
  std::vector<uint64_t> ends;
  uint64_t here = 0;
  for (const WeightUnit& unit : layout_.units) {
    const bool is_layer = unit.kind == WeightUnit::Kind::kLayer;
    const bool is_head = range.is_last && &unit == &layout_.units[layout_.head_unit()];
    ends.push_back(is_layer  ? unit.matrices[3].offset + unit.matrices[3].bytes()
                   : is_head ? 0
                             : unit.image_bytes);
    here += io_aligned(ends.back());
  }
  const WeightLayout rest = up_to(layout_, ends);
  EXPECT_EQ(rest.image_bytes(), here);
  if (range.is_last) {
    EXPECT_EQ(rest.head_unit(), layout_.head_unit());
  }
  const bool has_embedding = range.is_first && ends[0] > 0;
  WeightPlacement p = place_weights(rest, here - 1, {0, false, true});
  EXPECT_EQ(p.embedding_streamed(), has_embedding) << "before layers";
  p.ends = ends;
  uint64_t streamed = 0;
  for (size_t u = 0; u < layout_.units.size(); ++u) {
    EXPECT_LE(p.streamed[u], ends[u]);
    if (layout_.units[u].kind == WeightUnit::Kind::kLayer) streamed += p.streamed[u];
    EXPECT_EQ(p.end_of(layout_, u), ends[u]);
  }
  EXPECT_LE(streamed, streamed_bytes(layout_, p));
  EXPECT_LT(streamed_bytes(layout_, p), streamed + layout_.units.size() * kReadBlock);
}

INSTANTIATE_TEST_SUITE_P(Models, WeightPlacementTest, testing::ValuesIn(kCases));

}  // namespace
}  // namespace headrace
