// The GPU's attention, run on the CPU block by block, against the scalar CPU path: the same bits.

#include "engine/ops/cuda/attention_blocks.h"

#include <algorithm>

#include "engine/ops/attention.h"
#include "tests/ops/host_block.h"
#include "tests/ops/op_test.h"

namespace headrace {
namespace {

constexpr KvFormat kFormats[] = {KvFormat::kF16, KvFormat::kF32, KvFormat::kQ8, KvFormat::kQ4};
constexpr int kHeadDims[] = {16, 64, 80, 128};
constexpr int kKvHeads = 2, kHeads = 6;

// Empty pages (NaN) for so many tokens.
struct Pages {
  Pages(const KvPageShape& shape, int64_t tokens)
      : memory(static_cast<size_t>((tokens + kPageTokens - 1) / kPageTokens)) {
    for (auto& page : memory) {
      page.assign(shape.page_bytes(), std::byte{0xFF});
      pointers.push_back(page.data());
    }
  }

  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> pointers;
};

class AttentionBlocks : public testing::Test {
 protected:
  // K or V.
  std::vector<float> rows_of(const KvPageShape& shape, int64_t rows) {
    return random_.floats(rows * shape.kv_heads * shape.head_dim, 2.0f);
  }

  Random random_{11};
  ThreadPool threads_{1, 0};
  const Cpu cpu_{threads_, kernels(Target::kScalar)};
};

TEST_F(AttentionBlocks, AttendsAsTheCpuDoes) {
  for (const KvFormat format : kFormats) {
    for (const int head_dim : kHeadDims) {
      for (const int64_t tokens : {1, 15, 16, 17, 127, 128, 129, 300}) {
        SCOPED_TRACE(testing::Message()
                     << kv_format_name(format) << ", " << head_dim << " wide, context " << tokens);
        const KvPageShape shape{kKvHeads, head_dim, format};
        Pages pages(shape, tokens);
        const std::vector<float> k = rows_of(shape, tokens), v = rows_of(shape, tokens);
        const AttentionSequence all{0, tokens, 0, pages.pointers.data()};
        store_kv(cpu_, shape, std::span(&all, 1), k.data(), v.data());

        const int64_t rows = std::min<int64_t>(tokens, 5), first_row = 1;
        const AttentionSequence last{first_row, rows, tokens - rows, pages.pointers.data()};
        const int64_t floats = (first_row + rows) * kHeads * head_dim;
        const std::vector<float> q = random_.floats(floats, 3.0f);
        std::vector<float> expected = nans(floats), got = expected;
        const float scale = 0.125f;
        attention(cpu_, shape, std::span(&last, 1), kHeads, scale, q.data(), expected.data());
        for (int64_t tile = 0; tile < query_tiles(rows, kHeads / kKvHeads); ++tile) {
          for (int head = 0; head < kKvHeads; ++head) {
            HostBlock block(random_.below(2) == 0 ? 32 : 128, random_.bits());
            attend_tile(block, shape, scale, last.pages, head,
                        query_tile(shape, last, tile, head, kHeads, q.data(), got.data()));
            EXPECT_EQ(block.shared_bytes(), sizeof(float) * attention_shared_floats(head_dim));
          }
        }
        ASSERT_TRUE(same_bits(expected, got));
      }
    }
  }
}

}  // namespace
}  // namespace headrace
