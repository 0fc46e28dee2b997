// The GPU's plain linear layer, run on the CPU block by block, against the plain definition: the
// same bits in every format.

#include "engine/ops/cuda/linear_blocks.h"

#include "tests/ops/host_block.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"
#include "tests/reference/canonical.h"

namespace headrace {
namespace {

template <typename Type>
class LinearBlocks : public testing::Test {};

template <DType kType>
struct Format {
  static constexpr DType kDType = kType;
};

using Formats = testing::Types<Format<DType::kF32>, Format<DType::kF16>, Format<DType::kBF16>,
                               Format<DType::kQ8_0>, Format<DType::kQ4_0>, Format<DType::kQ4_1>,
                               Format<DType::kQ5_0>, Format<DType::kQ5_1>, Format<DType::kQ2_K>,
                               Format<DType::kQ3_K>, Format<DType::kQ4_K>, Format<DType::kQ5_K>,
                               Format<DType::kQ6_K>, Format<DType::kG8>, Format<DType::kG4>>;
TYPED_TEST_SUITE(LinearBlocks, Formats);

TYPED_TEST(LinearBlocks, BitsOfThePlainLoop) {
  constexpr DType kType = TypeParam::kDType;
  const int unit = dtype_info(kType).block_elements;
  Random random(31);
  for (const int64_t cols : {unit == 1 ? 7 : unit, unit == 1 ? 129 : 3 * unit}) {
    for (const int64_t outputs : {1, 31, 32, 33, 65}) {
      for (const int rows : {1, 7, kLinearRows}) {
        for (const bool gate : {false, true}) {
          SCOPED_TRACE(testing::Message() << outputs << " x " << cols << ", " << rows << " rows"
                                          << (gate ? ", gate" : ""));
          const Weights w = random_weights(kType, outputs, cols, random.bits());
          const std::vector<float> x = random.floats(rows * cols), bias = random.floats(outputs);
          const float* const maybe_bias = rows % 2 == 0 ? nullptr : bias.data();
          std::vector<float> y = random.floats(rows * outputs, 3.0f),
                             expected = nans(rows * outputs);
          reference::linear(x.data(), rows, cols, w.floats.data(), outputs, maybe_bias,
                            expected.data());
          if (gate) {
            for (size_t i = 0; i < y.size(); ++i) expected[i] *= reference::silu(y[i]);
          }
          const PackedMatrix matrix = w.view();
          for (int64_t p = matrix.panel_count(); p-- > 0;) {
            const int64_t n = p * kPanelRows;
            const auto width = static_cast<int>(std::min<int64_t>(kPanelRows, outputs - n));
            HostBlock block(random.below(2) == 0 ? 32 : 256, random.bits());
            linear_tile<kType>(
                block, {matrix.panel(p), cols, x.data(), rows, width,
                        maybe_bias ? maybe_bias + n : nullptr, y.data() + n, outputs, gate});
            EXPECT_EQ(block.shared_bytes(), sizeof(float) * linear_shared_floats());
          }
          ASSERT_TRUE(same_bits(expected, y));
        }
      }
    }
  }
}

}  // namespace
}  // namespace headrace
