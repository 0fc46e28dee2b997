// Linear layers in integers over packed weights of every format that has codes, on every target:
// the bits of the plain definition, near the product in float32, and NaN where x is not finite.

#include "engine/ops/int8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "engine/ops/cpu/int8_ops.h"
#include "engine/ops/linear.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"
#include "tests/reference/canonical.h"
#include "tests/reference/dequantize.h"
#include "tests/reference/int8.h"

namespace headrace {
namespace {

constexpr int64_t kMostOutputs = 97, kMostRows = 257;
constexpr int64_t kOutputs[] = {1, 31, 33, 97};
constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 17, 33, 64, 257};

// Groups of zeros, of one sign, of tiny and of very different numbers, too.
std::vector<float> some_rows(int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  std::vector<float> x = random.floats(rows * cols, 3.0f);
  for (size_t first = 0; first < x.size(); first += 32) {
    const auto group = std::span(x).subspan(first, 32);
    switch (random.below(10)) {
      case 0:
        std::fill(group.begin(), group.end(), random.below(2) ? 0.0f : -0.0f);
        break;
      case 1:
        for (float& value : group) value *= 1e-33f;
        break;
      case 2:
        for (float& value : group) value = std::fabs(value);
        break;
      case 3:
        group[static_cast<size_t>(random.below(32))] = -1e4f;
        break;
      case 4:  // the same magnitude: every code is 127 or -127
        for (float& value : group) value = std::copysign(0.7f, value);
        break;
      case 5:  // all products have the sign that is worst for sums in few bits
        std::fill(group.begin(), group.end(), random.below(2) ? 1.5f : -1.5f);
        break;
      default:
        break;
    }
  }
  return x;
}

struct Quantised {
  Quantised(const Cpu& cpu, const std::vector<float>& x, int64_t rows)
      : groups(std::ssize(x) / rows / kInt8Columns),
        blocks(static_cast<size_t>(int8_blocks(rows) * groups)) {
    std::memset(blocks.data(), 0xFF, blocks.size() * sizeof(Int8Block));
    quantise_rows(cpu, x.data(), rows, groups * kInt8Columns, blocks.data());
  }
  Int8Rows rows() const { return {blocks.data(), groups}; }

  int64_t groups;  // of a row
  std::vector<Int8Block> blocks;
};

std::vector<DType> coded_dtypes() {
  std::vector<DType> dtypes;
  for (const DType dtype : all_dtypes()) {
    if (has_codes(dtype)) dtypes.push_back(dtype);
  }
  return dtypes;
}

// Where `extreme` is true, most codes of a row are the same, at the ends of what the format has:
// bytes in the middle of a block, where no format has its f16 scales.
Weights some_weights(DType dtype, int64_t cols, bool extreme) {
  Weights w = random_weights(dtype, kMostOutputs, cols, 31);
  if (!extreme) return w;
  constexpr std::byte kEnds[] = {std::byte{0xFF}, std::byte{0}, std::byte{0x80}, std::byte{0x7F}};
  const size_t of_row = row_bytes(dtype, cols);
  const auto block = static_cast<size_t>(dtype_info(dtype).block_bytes);
  for (size_t at = 0; at < w.raw.size(); ++at) {
    const size_t in_block = at % of_row % block;
    if (in_block < block / 4 || in_block >= block - block / 8) continue;
    w.raw[at] = kEnds[at / of_row % 4];
  }
  w.panels = w.pack_first(w.rows);
  return w;
}

// Kernels of each target with each table for integers that this CPU has, by name: "avx512_vnni".
std::map<std::string, Kernels> all_kernels() {
  std::map<std::string, Kernels> all;
  for (const Target target : supported_targets()) {
    for (const Int8Kernels& int8 : int8_tables(target)) {
      Kernels& table = all[std::string(target_name(target)) + "_" + int8.name];
      table = kernels(target);
      table.int8 = int8;
    }
  }
  return all;
}

std::vector<std::string> names_of_kernels() {
  std::vector<std::string> names;
  for (const auto& [name, table] : all_kernels()) names.push_back(name);
  return names;
}

class Int8Linear : public testing::TestWithParam<std::tuple<DType, std::string>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  const Kernels& target() const { return target_; }
  const Kernels target_ = all_kernels().at(std::get<1>(GetParam()));
  ThreadPool one_{1, 0}, three_{3, 0};
};

TEST_P(Int8Linear, BitsOfTheDefinition) {
  const int64_t cols = dtype_info(dtype()).block_elements == 256 ? 768 : 704;
  for (const bool extreme : {false, true}) {
    const Weights w = some_weights(dtype(), cols, extreme);
    const std::vector<float> x = some_rows(kMostRows, cols, 33);
    const std::vector<float> bias = Random(34).floats(kMostOutputs);
    std::vector<float> all(kMostRows * kMostOutputs);
    reference::int8_linear(x.data(), kMostRows, {dtype(), w.rows, cols, w.raw.data()}, bias.data(),
                           all.data());
    for (const int64_t outputs : kOutputs) {
      const std::vector<std::byte> panels = w.pack_first(outputs);
      const PackedMatrix matrix{dtype(), outputs, cols, panels.data()};
      for (const int64_t rows : kRows) {
        const Cpu cpu{rows % 2 ? one_ : three_, target()};
        const Quantised quantised(cpu, {x.begin(), x.begin() + rows * cols}, rows);
        std::vector<float> expected;
        for (int64_t m = 0; m < rows; ++m) {
          expected.insert(expected.end(), all.begin() + m * kMostOutputs,
                          all.begin() + m * kMostOutputs + outputs);
        }
        std::vector<float> y = nans(rows * outputs + 1);
        const int64_t panel_count = matrix.panel_count(), half = panel_count / 2;
        linear_panels(cpu, quantised.rows(), rows, matrix, bias.data(), 0, half, y.data());
        linear_panels(cpu, quantised.rows(), rows, matrix, bias.data(), half, panel_count,
                      y.data());
        ASSERT_TRUE(std::isnan(y.back())) << "wrote past the end";
        y.pop_back();
        ASSERT_TRUE(same_bits(expected, y)) << outputs << " outputs, " << rows << " rows";
      }
    }
  }
}

// Columns that are a whole tile of groups, and one group: with and without a rest.
TEST_P(Int8Linear, ShortAndLongRows) {
  const int block = dtype_info(dtype()).block_elements;
  for (const int64_t blocks : {1, 2, 3, 8, 9, 19}) {
    const int64_t cols = blocks * block;
    const Weights w = random_weights(dtype(), 33, cols, 35);
    const std::vector<float> x = some_rows(35, cols, 36);
    for (const int64_t rows : {1, 7, 35}) {
      const Cpu cpu{one_, target()};
      std::vector<float> expected(static_cast<size_t>(rows * 33)), y = nans(rows * 33);
      reference::int8_linear(x.data(), rows, {dtype(), 33, cols, w.raw.data()}, nullptr,
                             expected.data());
      const Quantised quantised(cpu, {x.begin(), x.begin() + rows * cols}, rows);
      linear_panels(cpu, quantised.rows(), rows, w.view(), nullptr, 0, 2, y.data());
      ASSERT_TRUE(same_bits(expected, y)) << cols << " columns, " << rows << " rows";
    }
  }
}

// From any row of a block on, to any: the parts of blocks at both ends, and none or several whole.
TEST_P(Int8Linear, RowsFromTheMiddleOfABlock) {
  constexpr int64_t kCols = 256, kMany = 55, kFew = 35;
  const Weights w = random_weights(dtype(), kFew, kCols, 47);
  const std::vector<float> x = some_rows(kMany, kCols, 48);
  const Cpu cpu{one_, target()};
  std::vector<float> all(kMany * kFew);
  reference::int8_linear(x.data(), kMany, {dtype(), kFew, kCols, w.raw.data()}, nullptr,
                         all.data());
  const Quantised quantised(cpu, x, kMany);
  for (const int64_t first : {0, 1, 15, 16, 21}) {
    for (const int64_t rows : {1, 3, 15, 16, 17, 33}) {
      std::vector<float> y = nans(rows * kFew);
      linear_panels(cpu, quantised.rows().from(first), rows, w.view(), nullptr, 0, 2, y.data());
      const auto begin = all.begin() + first * kFew;
      ASSERT_TRUE(same_bits({begin, begin + rows * kFew}, y)) << rows << " rows from " << first;
    }
  }
}

// More of x than a core keeps near: some columns at a time, the last time fewer.
TEST_P(Int8Linear, WideRowsInBlocksOfColumns) {
  constexpr int64_t kCols = 2304, kMany = 200, kFew = 40;
  const Weights w = random_weights(dtype(), kFew, kCols, 45);
  const std::vector<float> x = some_rows(kMany, kCols, 46);
  const Cpu cpu{three_, target()};
  std::vector<float> expected(kMany * kFew), y = nans(kMany * kFew);
  reference::int8_linear(x.data(), kMany, {dtype(), kFew, kCols, w.raw.data()}, nullptr,
                         expected.data());
  const Quantised quantised(cpu, x, kMany);
  linear_panels(cpu, quantised.rows(), kMany, w.view(), nullptr, 0, 2, y.data());
  ASSERT_TRUE(same_bits(expected, y));
}

// x is off by at most half a step of its group, hence a product by so much times its weight. What
// is rounded on the way is a few units in the last place of the parts that are added up, scaled
// codes and offsets.
TEST_P(Int8Linear, NearTheProductInFloat32) {
  constexpr int64_t kCols = 768, kFew = 19;
  const Weights w = random_weights(dtype(), kMostOutputs, kCols, 37);
  const std::vector<float> x = Random(38).floats(kFew * kCols, 2.0f);
  const Cpu cpu{one_, target()};
  const Quantised quantised(cpu, x, kFew);
  std::vector<float> y = nans(kFew * kMostOutputs);
  linear_panels(cpu, quantised.rows(), kFew, w.view(), nullptr, 0, w.view().panel_count(),
                y.data());
  for (int64_t m = 0; m < kFew; ++m) {
    for (int64_t n = 0; n < kMostOutputs; ++n) {
      double exact = 0, bound = 0, parts = 0;
      for (int64_t k = 0; k < kCols; ++k) {
        const auto element = reference::coded_element(dtype(), w.raw_row(n), k);
        const double scaled = double{element.scale} * element.code;
        const double offset = element.offset.value_or(0.0f);
        const double value = x[static_cast<size_t>(m * kCols + k)];
        const double step = quantised.rows().block(m)[k / kInt8Columns].scale[m % kInt8Rows];
        exact += value * (scaled + offset);
        bound += 0.5001 * step * std::fabs(scaled + offset);
        parts += std::fabs(value) * (std::fabs(scaled) + std::fabs(offset));
      }
      const double got = y[static_cast<size_t>(m * kMostOutputs + n)];
      ASSERT_LE(std::fabs(got - exact), bound + 1e-5 * parts) << "row " << m << ", output " << n;
    }
  }
}

TEST_P(Int8Linear, WhatIsNotFiniteStaysSo) {
  constexpr int64_t kCols = 512, kFew = 35;
  const Weights w = random_weights(dtype(), 40, kCols, 39);
  for (const float broken : {kNan, kInf, -kInf}) {
    std::vector<float> x = Random(40).floats(kFew * kCols);
    x[3 * kCols + 77] = broken;
    const Cpu cpu{one_, target()};
    const Quantised quantised(cpu, x, kFew);
    std::vector<float> y(kFew * 40, 0.0f);
    linear_panels(cpu, quantised.rows(), kFew, w.view(), nullptr, 0, 2, y.data());
    for (int64_t i = 0; i < kFew * 40; ++i) {
      ASSERT_EQ(std::isfinite(y[static_cast<size_t>(i)]), i / 40 != 3) << i;
    }
  }
}

TEST_P(Int8Linear, SecondHalfOfAGatedMlp) {
  constexpr int64_t kCols = 256;
  const Weights w = random_weights(dtype(), kMostOutputs, kCols, 41);
  for (const int64_t rows : {1, 7, 257}) {
    const Cpu cpu{three_, target()};
    const std::vector<float> x = some_rows(rows, kCols, 42);
    const std::vector<float> gate = Random(43).floats(rows * kMostOutputs, 3.0f);
    std::vector<float> expected(gate.size()), y = gate;
    reference::int8_linear(x.data(), rows, {dtype(), w.rows, kCols, w.raw.data()}, nullptr,
                           expected.data());
    for (size_t i = 0; i < expected.size(); ++i) expected[i] *= reference::silu(gate[i]);
    const Quantised quantised(cpu, x, rows);
    gate_panels(cpu, quantised.rows(), rows, w.view(), nullptr, 0, w.view().panel_count(),
                y.data());
    ASSERT_TRUE(same_bits(expected, y)) << rows << " rows";
  }
}

INSTANTIATE_TEST_SUITE_P(, Int8Linear,
                         testing::Combine(testing::ValuesIn(coded_dtypes()),
                                          testing::ValuesIn(names_of_kernels())),
                         [](const auto& test) {
                           return std::string(dtype_name(std::get<0>(test.param))) + "_" +
                                  std::get<1>(test.param);
                         });

class QuantisedRows : public OpTest {};

TEST_P(QuantisedRows, BitsOfTheDefinition) {
  constexpr int64_t kCols = 4864, kFew = 21;
  std::vector<float> x = some_rows(kFew, kCols, 44);
  x[40] = kNan, x[100] = kInf, x[kCols + 1] = -kInf;
  x[200] = 0x1p-100f, x[232] = std::numeric_limits<float>::max();
  std::fill_n(x.begin() + 256, 32, 1e-45f);
  const Quantised quantised(cpu_, x, kFew);
  const reference::Int8Row expected = reference::quantise_int8(x);
  for (int64_t row = 0, g = 0; row < kFew; ++row) {
    for (int64_t of_row = 0; of_row < quantised.groups; ++of_row, ++g) {
      const Int8Block& block = quantised.rows().block(row)[of_row];
      const int slot = quantised.rows().slot(row);
      ASSERT_TRUE(same_bits(expected.scales[static_cast<size_t>(g)], block.scale[slot]))
          << "group " << g;
      int sums[3] = {0, 0, 0};
      for (int i = 0; i < 32; ++i) {
        const int code = block.codes[slot][i];
        ASSERT_EQ(expected.codes[static_cast<size_t>(g * 32 + i)], code)
            << "group " << g << ", " << i;
        ASSERT_LE(std::abs(code), 127);
        sums[i / 16] += code;
        sums[2] += code;
      }
      for (int i = 0; i < 3; ++i) {
        ASSERT_EQ(-sums[i], block.minus_sum[i][slot]);
        const float scaled = block.scale[slot] * static_cast<float>(sums[i]);
        ASSERT_TRUE(same_bits(scaled, block.scaled_sum[i][slot]));
      }
    }
  }
  // Slots past the rows are as they were: all bits set.
  for (int64_t of_row = 0; of_row < quantised.groups; ++of_row) {
    const Int8Block& block = quantised.rows().block(kFew - 1)[of_row];
    for (int slot = kFew % kInt8Rows; slot < kInt8Rows; ++slot) {
      ASSERT_EQ(-1, block.codes[slot][0]);
      ASSERT_EQ(-1, block.minus_sum[kWhole][slot]);
    }
  }
}

// With room for 16 rows: rows that are not in it are quantised anew, from any row on.
TEST_P(QuantisedRows, InARoomThatIsTooSmall) {
  constexpr int64_t kCols = 256, kAll = 40, kFew = 33;
  const Weights w = random_weights(DType::kQ4_0, kFew, kCols, 51);
  std::vector<float> x = some_rows(kAll, kCols, 52), expected(kAll * kFew);
  reference::int8_linear(x.data(), kAll, {DType::kQ4_0, kFew, kCols, w.raw.data()}, nullptr,
                         expected.data());
  std::vector<Int8Block> room(kCols / kInt8Columns);
  Int8Ops ops(cpu_, room);
  const auto* const operand =
      reinterpret_cast<const float*>(ops.operand(x.data(), kAll, kCols, nullptr));
  for (const int64_t first : {0, 5, 16, 37, 2}) {
    const int64_t rows = std::min<int64_t>(kAll - first, 30);
    std::vector<float> y = nans(rows * kFew);
    ops.linear_panels(reinterpret_cast<const Operand*>(operand + first * kCols), rows, w.view(),
                      nullptr, 0, 2, y.data());
    const auto begin = expected.begin() + first * kFew;
    ASSERT_TRUE(same_bits({begin, begin + rows * kFew}, y)) << rows << " rows from " << first;
  }
}

INSTANTIATE_TEST_SUITE_P(, QuantisedRows, testing::ValuesIn(all_op_configs()), config_name);

TEST(Int8Tables, TileRegistersWhereTheyAre) {
  std::ifstream file("/proc/cpuinfo");
  const std::string flags{std::istreambuf_iterator<char>(file), {}};
  if (flags.find(" amx_int8") == std::string::npos) GTEST_SKIP() << "this CPU has no AMX";
  EXPECT_STREQ("amx", kernels("auto").int8.name);
}

// The steps themselves, by hand.
TEST(Int8Reference, RoundsToEven) {
  std::vector<float> x(32, 0.0f);
  x[0] = 127.0f, x[1] = 2.5f, x[2] = -3.5f, x[3] = 0.5f, x[4] = -126.51f;
  const reference::Int8Row row = reference::quantise_int8(x);
  EXPECT_EQ(row.scales, std::vector<float>{1.0f});
  EXPECT_EQ((std::vector<int>{row.codes.begin(), row.codes.begin() + 6}),
            (std::vector<int>{127, 2, -4, 0, -127, 0}));
}

}  // namespace
}  // namespace headrace
