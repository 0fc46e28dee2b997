// The attention kernels of the tensor cores, on the CPU, a block at a time: near attention in
// float64, and the same bits whatever the kernel, the chunk, the other sequences and the order that
// threads come in.
#include <gtest/gtest.h>

#include "tests/ops/emulated_gpu.h"

// After the instructions.
#include "engine/ops/cuda/half_attention_blocks.cuh"
#include "tests/ops/op_test.h"

namespace headrace {
namespace {

using cuda::Work;

struct Case {
  int head_dim, heads, kv_heads;
  int64_t context, rows;  // the last rows of a sequence of so many tokens
};

class Attention {
 public:
  explicit Attention(const Case& c) : case_(c), shape_{c.kv_heads, c.head_dim, KvFormat::kF16} {
    Random random(static_cast<uint64_t>(c.head_dim + c.context));
    const int64_t pages = (c.context + kPageTokens - 1) / kPageTokens;
    k_ = random.floats(c.context * c.kv_heads * c.head_dim, 2.0f);
    v_ = random.floats(c.context * c.kv_heads * c.head_dim, 2.0f);
    q_ = random.floats(c.context * c.heads * c.head_dim, 2.0f);
    for (int64_t i = 0; i < pages; ++i) {
      memory_.emplace_back(shape_.page_bytes() / 16 + 1);
      std::memset(memory_.back().data(), 0xFF, shape_.page_bytes());
      table_.push_back(reinterpret_cast<std::byte*>(memory_.back().data()));
    }
    const AttentionSequence all{0, c.context, 0, table_.data()};
    for (int64_t i = 0; i < store_pieces(shape_, all); ++i) {
      store_piece(shape_, all, i, k_.data(), v_.data());
    }
  }

  // Of the rows from `first` on, so many of them.
  std::vector<Half> run(int64_t first, int64_t rows, bool together, uint64_t seed) {
    switch (shape_.v_stride()) {
      case 16:
        return run<16>(first, rows, together, seed);
      case 32:
        return run<32>(first, rows, together, seed);
      case 64:
        return run<64>(first, rows, together, seed);
      case 80:
        return run<80>(first, rows, together, seed);
      case 96:
        return run<96>(first, rows, together, seed);
      case 128:
        return run<128>(first, rows, together, seed);
      case 256:
        return run<256>(first, rows, together, seed);
    }
    return {};
  }

  int64_t row_width() const { return int64_t{case_.heads} * case_.head_dim; }

  // In float64, of a row.
  std::vector<double> exact(int64_t row) const {
    std::vector<double> out;
    const int group = case_.heads / case_.kv_heads;
    for (int head = 0; head < case_.heads; ++head) {
      const auto at = [&](const std::vector<float>& kv, int64_t token, int d) {
        return static_cast<double>(
            f16_to_f32(to_half(kv[static_cast<size_t>(
                                   (token * case_.kv_heads + head / group) * case_.head_dim + d)])
                           .bits));
      };
      std::vector<double> weights;
      double most = -1e300, sum = 0;
      for (int64_t token = 0; token <= row; ++token) {
        double score = 0;
        for (int d = 0; d < case_.head_dim; ++d) {
          score += static_cast<double>(
                       q_[static_cast<size_t>(row * row_width() + head * case_.head_dim + d)]) *
                   at(k_, token, d);
        }
        weights.push_back(score * kScale);
        most = std::max(most, weights.back());
      }
      for (double& w : weights) sum += w = std::exp(w - most);
      for (int d = 0; d < case_.head_dim; ++d) {
        double value = 0;
        for (int64_t token = 0; token <= row; ++token) {
          value += weights[static_cast<size_t>(token)] * at(v_, token, d);
        }
        out.push_back(value / sum);
      }
    }
    return out;
  }

 private:
  static constexpr float kScale = 0.11f;
  static constexpr int64_t kOthers = 3;

  template <int kDim>
  std::vector<Half> run(int64_t first, int64_t rows, bool together, uint64_t seed) {
    // Behind rows of another sequence, which are not looked at and stay as they are.
    const AttentionSequence sequence{kOthers, rows, first, table_.data()};
    std::vector<float> q = nans(kOthers * row_width());
    q.insert(q.end(), q_.begin() + first * row_width(), q_.begin() + (first + rows) * row_width());
    // With an even seed where whole pieces of 16 bytes cannot be written.
    const size_t skipped = seed % 2 == 0 ? 2 : 0;
    const auto others = static_cast<int64_t>(skipped) + kOthers * row_width();
    std::vector<Half> out(static_cast<size_t>(others + rows * row_width()), Half{0x7E00});
    const int group = case_.heads / case_.kv_heads;
    Work work{shape_,   &sequence,           0, case_.heads, kScale * 1.4426950408889634f,
              q.data(), out.data() + skipped};
    constexpr int64_t kQueries = cuda::kWarps * cuda::kWarpQueries;
    work.tiles = static_cast<int>((rows * group + kQueries - 1) / kQueries);
    const auto bytes =
        static_cast<size_t>(together ? cuda::Together<kDim>::kBytes : cuda::Apart<kDim>::kBytes);
    for (int kv_head = 0; kv_head < case_.kv_heads; ++kv_head) {
      for (unsigned x = 0; x < (together ? 1u : static_cast<unsigned>(work.tiles)); ++x) {
        cuda::Block block(cuda::kThreads, bytes, seed++);
        block.run({x, static_cast<unsigned>(kv_head)}, [&](char* shared) {
          together ? cuda::attend_together<kDim>(work, shared)
                   : cuda::attend_apart<kDim>(work, shared);
        });
      }
    }
    EXPECT_TRUE(std::all_of(out.begin(), out.begin() + others,
                            [](const Half& half) { return half.bits == 0x7E00; }));
    out.erase(out.begin(), out.begin() + others);
    return out;
  }

  Case case_;
  KvPageShape shape_;
  std::vector<float> q_, k_, v_;
  std::vector<std::vector<cuda::uint4>> memory_;
  std::vector<std::byte*> table_;
};

bool same(std::span<const Half> a, std::span<const Half> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

constexpr Case kCases[] = {
    {64, 4, 2, 1, 1},
    {64, 14, 2, 33, 7},
    {128, 2, 2, 64, 64},
    {128, 2, 2, 65, 65},
    {128, 2, 1, 150, 9},
    {80, 2, 2, 130, 3},
    {64, 2, 1, 200, 70},
    {96, 2, 2, 17, 17},
    {12, 2, 1, 40, 20},
    {16, 4, 1, 257, 100},
    {72, 2, 1, 130, 34},
    {128, 8, 1, 49, 40},
    // Where pages, tiles and steps end.
    {64, 2, 2, 15, 15},
    {64, 2, 2, 16, 16},
    {64, 4, 2, 48, 5},
    {128, 2, 2, 63, 3},
    {128, 4, 2, 128, 10},
    {80, 2, 1, 129, 33},
    // Widths that no usual model has.
    {24, 2, 1, 33, 20},
    {256, 2, 1, 70, 20},
};

TEST(HalfAttention, IsNearAttentionInFloat64) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.head_dim << " " << c.heads << "/" << c.kv_heads << ", "
                                    << c.rows << " of " << c.context);
    Attention attention(c);
    const std::vector<Half> got = attention.run(c.context - c.rows, c.rows, false, 1);
    double squares = 0, differences = 0;
    for (int64_t row = 0; row < c.rows; ++row) {
      const std::vector<double> exact = attention.exact(c.context - c.rows + row);
      for (size_t i = 0; i < exact.size(); ++i) {
        const double value = static_cast<double>(
            f16_to_f32(got[static_cast<size_t>(row * attention.row_width()) + i].bits));
        squares += exact[i] * exact[i];
        differences += (value - exact[i]) * (value - exact[i]);
      }
    }
    ASSERT_LT(std::sqrt(differences / squares), 2e-3);  // f16 factors, NaN never passes
  }
}

TEST(HalfAttention, HasTheSameBitsHoweverItRuns) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.head_dim << " " << c.heads << "/" << c.kv_heads << ", "
                                    << c.rows << " of " << c.context);
    Attention attention(c);
    const int64_t first = c.context - c.rows, width = attention.row_width();
    const std::vector<Half> all = attention.run(first, c.rows, false, 1);
    EXPECT_TRUE(same(all, attention.run(first, c.rows, false, 78))) << "another order of threads";
    const auto expect_rows = [&](int64_t begin, int64_t rows, bool together) {
      const auto expected = std::span(all).subspan(static_cast<size_t>((begin - first) * width),
                                                   static_cast<size_t>(rows * width));
      EXPECT_TRUE(same(expected, attention.run(begin, rows, together, 5)))
          << rows << " from " << begin << (together ? " together" : "");
    };
    // Chunks, and single rows by both kernels.
    const int64_t chunk = std::min<int64_t>(c.rows, 7);
    expect_rows(c.context - chunk, chunk, false);
    expect_rows(first, (c.rows + 1) / 2, false);
    const int group = c.heads / c.kv_heads;
    for (const int64_t row : {first, c.context - 1}) {
      expect_rows(row, 1, false);
      if (group <= cuda::kWarpQueries) expect_rows(row, 1, true);
    }
    const int64_t few = std::min<int64_t>(c.rows, cuda::kWarpQueries / group);
    if (few > 1) expect_rows(c.context - few, few, true);
  }
}

}  // namespace
}  // namespace headrace
