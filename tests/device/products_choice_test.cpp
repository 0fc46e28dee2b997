// Which algorithms products take, on a cuBLASLt whose algorithms are made up: the fastest of those
// that give a row the same bits in any batch and however a matrix is cut.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "engine/device/cuda/products.h"
#include "tests/device/fake_cublas.h"
#include "tests/ops/op_test.h"
#include "tests/ops/random_weights.h"

namespace headrace {
namespace {

using test::FakeAlgorithm;
using test::FakeProduct;
using Order = FakeAlgorithm::Order;
using Result = HalfProduct::Result;

constexpr int64_t kInputs = 48, kOutputs = 96, kMostRows = 80;

std::string name_of(const testing::TestParamInfo<Result>& info) {
  return info.param == Result::kFloat ? "float" : info.param == Result::kAdded ? "added" : "relu";
}

class ProductChoice : public testing::TestWithParam<Result> {
 protected:
  ProductChoice() {
    test::fake_blas() = {};
    for (const float value : random_.floats(kMostRows * kInputs)) x_.push_back(to_half(value));
    for (const float value : random_.floats(3 * kOutputs * kInputs)) w_.push_back(to_half(value));
  }
  ~ProductChoice() override { EXPECT_EQ(test::fake_blas().faults, std::vector<std::string>{}); }

  static std::vector<FakeAlgorithm>& algorithms() { return test::fake_blas().algorithms; }

  HalfProduct product(int64_t rows) {
    y_.assign(before_.begin(), before_.end());
    return {.x = x_.data(),
            .rows = rows,
            .w = w_.data(),
            .outputs = kOutputs,
            .inputs = kInputs,
            .bias = bias_.data(),
            .scale = 0.5f,
            .result = GetParam(),
            .y = y_.data(),
            .stride = kOutputs};
  }

  // What becomes of y.
  std::vector<float> done(Products& products, const HalfProduct& p) {
    products.multiply(nullptr, p);
    return y_;
  }
  // The algorithm that the last product had.
  static size_t taken() { return test::fake_blas().calls.back(); }

  // Each row of y as by itself, whatever else is in the batch.
  void expect_rows_alone(Products& products) {
    const auto bytes = static_cast<size_t>(kOutputs) *
                       (GetParam() == Result::kReluHalf ? sizeof(Half) : sizeof(float));
    std::vector<std::byte> alone(kMostRows * bytes);
    for (int64_t row = 0; row < kMostRows; ++row) {
      HalfProduct one = product(1);
      one.x += row * kInputs;
      const auto at = static_cast<size_t>(row) * bytes;
      // What it is added to is that row's.
      std::memcpy(y_.data(), reinterpret_cast<const std::byte*>(before_.data()) + at, bytes);
      done(products, one);
      std::memcpy(alone.data() + at, y_.data(), bytes);
    }
    for (int64_t rows = 1; rows <= kMostRows; ++rows) {
      done(products, product(rows));
      EXPECT_EQ(std::memcmp(alone.data(), y_.data(), static_cast<size_t>(rows) * bytes), 0) << rows;
    }
  }

  Random random_{5};
  std::vector<Half> x_, w_;
  std::vector<float> bias_ = random_.floats(3 * kOutputs + 8);
  std::vector<float> before_ = random_.floats(3 * kMostRows * kOutputs), y_;
};

TEST_P(ProductChoice, TheFastestOfTheFirstOnesId) {
  algorithms() = {{.id = 66, .seconds = 3},
                  {.id = 66, .seconds = 2},
                  {.id = 71, .seconds = 1, .order = Order::kDown}};
  Products products;
  expect_rows_alone(products);
  EXPECT_EQ(taken(), 1U);
}

// cuBLASLt recommends none of the usual matrix's id for this one.
TEST_P(ProductChoice, AFastOneOfAnIdThatIsRecommendedForOthersOnly) {
  const auto usual_rows = [](const FakeProduct& p) { return p.outputs > 4000 && p.rows > 4000; };
  const auto usual_few = [](const FakeProduct& p) { return p.outputs > 4000 && p.rows < 100; };
  const auto own = [](const FakeProduct& p) { return p.outputs == kOutputs; };
  algorithms() = {{.id = 71, .seconds = 1, .order = Order::kDown, .is_recommended = own},
                  {.id = 66, .seconds = 9, .is_recommended = usual_rows},
                  {.id = 66, .seconds = 2, .is_recommended = usual_few}};
  Products products;
  expect_rows_alone(products);
  EXPECT_EQ(taken(), 2U);
}

TEST_P(ProductChoice, NoneWhoseBitsDependOnTheBatch) {
  algorithms() = {{.id = 66, .seconds = 3},
                  {.id = 66, .seconds = 1, .order = Order::kBySizeOfBatch},
                  {.id = 66, .seconds = 2}};
  Products products;
  expect_rows_alone(products);
  EXPECT_EQ(taken(), 2U);
}

TEST_P(ProductChoice, NoneThatSplitsItsSums) {
  algorithms() = {{.id = 66, .seconds = 1, .order = Order::kDown, .split_k = 4},
                  {.id = 66, .seconds = 3}};
  Products products;
  expect_rows_alone(products);
  EXPECT_EQ(taken(), 1U);
}

TEST_P(ProductChoice, AnotherOneWhereTheFastestDoesNotDoIt) {
  const auto not_33 = [](const FakeProduct& p) { return p.rows != 33; };
  const auto few = [](const FakeProduct& p) { return p.rows <= 32; };
  const auto all = [](const FakeProduct&) { return true; };
  algorithms() = {
      {.id = 66, .seconds = 3},
      {.id = 66, .seconds = 1, .is_recommended = all, .works = not_33},
      {.id = 66, .seconds = 0.5, .is_recommended = all, .works = few},
  };
  Products products;
  done(products, product(64));  // as a run does first
  expect_rows_alone(products);
  done(products, product(33));
  EXPECT_EQ(taken(), 0U);
  done(products, product(34));
  EXPECT_EQ(taken(), 1U);
  done(products, product(32));
  EXPECT_EQ(taken(), 2U);
}

TEST_P(ProductChoice, TheNextIdWhereTheFirstCannotDoIt) {
  const auto none = [](const FakeProduct&) { return false; };
  const auto all = [](const FakeProduct&) { return true; };
  algorithms() = {{.id = 66, .seconds = 1, .is_recommended = all, .works = none},
                  {.id = 35, .seconds = 2}};
  Products products;
  expect_rows_alone(products);
  EXPECT_EQ(taken(), 1U);
}

// cuBLASLt recommends another id for pieces, and yet another for a few rows of them.
TEST_P(ProductChoice, PiecesHaveTheBitsOfTheWhole) {
  constexpr int64_t kPiece = 32;
  const auto small = [](const FakeProduct& p) { return p.outputs == kPiece; };
  const auto tiny = [](const FakeProduct& p) { return p.outputs == kPiece && p.rows < 8; };
  const auto usual = [](const FakeProduct& p) { return p.outputs > kPiece; };
  algorithms() = {{.id = 21, .seconds = 1, .order = Order::kDown, .is_recommended = tiny},
                  {.id = 35, .seconds = 2, .order = Order::kBySizeOfBatch, .is_recommended = small},
                  {.id = 66, .seconds = 3, .is_recommended = usual}};
  const size_t element = GetParam() == Result::kReluHalf ? sizeof(Half) : sizeof(float);
  for (const bool pieces_first : {false, true}) {
    Products products;
    const auto whole = [&](int64_t rows) { return done(products, product(rows)); };
    for (const int64_t rows : {1, 5, 16, 80}) {
      if (!pieces_first) whole(rows);
      std::vector<std::byte> together(static_cast<size_t>(rows * kOutputs) * element);
      for (int64_t first = 0; first < kOutputs; first += kPiece) {
        HalfProduct piece = product(rows);
        piece.w += first * kInputs;
        piece.bias += first;
        piece.outputs = kPiece;
        piece.y = reinterpret_cast<std::byte*>(y_.data()) + static_cast<size_t>(first) * element;
        products.multiply(nullptr, piece);
        for (int64_t row = 0; row < rows; ++row) {
          const auto at = static_cast<size_t>(row * kOutputs + first) * element;
          std::memcpy(together.data() + at, reinterpret_cast<std::byte*>(y_.data()) + at,
                      kPiece * element);
        }
      }
      EXPECT_EQ(std::memcmp(whole(rows).data(), together.data(), together.size()), 0) << rows;
    }
  }
}

TEST_P(ProductChoice, AddressesAreAsAlignedAsAnAlgorithmWants) {
  algorithms() = {{.id = 66, .seconds = 1, .aligned = 16}, {.id = 66, .seconds = 2, .aligned = 4}};
  Products products;
  done(products, product(7));
  EXPECT_EQ(taken(), 0U);
  HalfProduct p = product(7);
  p.w += 2 * 3;
  done(products, p);
  EXPECT_EQ(taken(), 1U);
}

TEST_P(ProductChoice, WhatNoneCanDoIsAnError) {
  const auto none = [](const FakeProduct&) { return false; };
  for (const bool are_there : {false, true}) {
    algorithms().clear();
    if (are_there)
      algorithms() = {{.id = 66, .is_recommended = [](auto&) { return true; }, .works = none}};
    Products products;
    try {
      done(products, product(7));
      ADD_FAILURE();
    } catch (const ResourceMissing& e) {
      const std::string text = e.what();
      EXPECT_NE(text.find("7 rows through a matrix of 96 x 48"), std::string::npos) << text;
      EXPECT_NE(text.find("--math f32"), std::string::npos) << text;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Results, ProductChoice,
                         testing::Values(Result::kFloat, Result::kAdded, Result::kReluHalf),
                         name_of);

// Three at once, as q, k and v are.
class ProductsAtOnce : public ProductChoice {
 protected:
  HalfProduct three(int64_t rows, int64_t bias_apart) {
    HalfProduct p = product(rows);
    p.count = 3;
    p.w_apart = kOutputs * kInputs;
    p.bias_apart = bias_apart;
    p.y_apart = kMostRows * kOutputs;
    return p;
  }
  // Each as by itself.
  void expect_each_alone(Products& products, int64_t bias_apart) {
    for (const int64_t rows : {1, 7, 33}) {
      const std::vector<float> together = done(products, three(rows, bias_apart));
      const HalfProduct p = three(rows, bias_apart);
      for (int i = 0; i < p.count; ++i) products.multiply(nullptr, part_of(p, i));
      EXPECT_EQ(std::memcmp(together.data(), y_.data(), y_.size() * sizeof(float)), 0) << rows;
    }
  }
};

TEST_P(ProductsAtOnce, HaveTheBitsOfEachAlone) {
  algorithms() = {{.id = 66, .seconds = 2},
                  {.id = 66, .seconds = 1, .order = Order::kBySizeOfBatch}};
  Products products;
  expect_each_alone(products, kOutputs);
  done(products, three(7, kOutputs));
  EXPECT_EQ(test::fake_blas().calls.back(), 0U);
}

TEST_P(ProductsAtOnce, AreDoneOneByOneWhereNoneDoesSeveral) {
  const auto one = [](const FakeProduct& p) { return p.count == 1; };
  const auto all = [](const FakeProduct&) { return true; };
  algorithms() = {{.id = 66, .seconds = 2, .is_recommended = all, .works = one},
                  {.id = 71, .seconds = 1, .order = Order::kDown}};
  Products products;
  expect_each_alone(products, kOutputs);
  const size_t before = test::fake_blas().calls.size();
  done(products, three(7, kOutputs));
  EXPECT_EQ(test::fake_blas().calls.size(), before + 3);
}

TEST_P(ProductsAtOnce, ABiasThatIsAlignedByChanceOnly) {
  algorithms() = {{.id = 66, .seconds = 1, .aligned = 16}, {.id = 66, .seconds = 2, .aligned = 4}};
  Products products;
  done(products, three(7, kOutputs));
  EXPECT_EQ(taken(), 0U);
  expect_each_alone(products, kOutputs + 1);
  done(products, three(7, kOutputs + 1));
  EXPECT_EQ(taken(), 1U);
}

INSTANTIATE_TEST_SUITE_P(Results, ProductsAtOnce, testing::Values(Result::kFloat, Result::kAdded),
                         name_of);

// Of low-bit weights, which a kernel may read as they are.
class PackedChoice : public ProductChoice {
 protected:
  static constexpr int64_t kColumns = 64;

  PackedChoice() {
    algorithms() = {{.id = 66, .seconds = 3}};
    test::fake_blas().packed = {.seconds = 1, .expanding_s = 5};
  }

  // With the panels from `first` on.
  HalfProduct packed(Products& products, int64_t rows, int64_t first = 0, int64_t x_at = 0) {
    HalfProduct p = product(rows);
    p.x += x_at;
    p.w = nullptr;
    p.inputs = kColumns;
    p.outputs -= first * kPanelRows;
    p.bias += first * kPanelRows;
    const PackedProduct one{p, weights_.view(), first};
    products.multiply_packed(nullptr, {&one, 1}, room());
    return p;
  }
  // As of a matrix of f16.
  std::vector<float> expanded(Products& products, int64_t rows) {
    std::vector<Half> w;
    for (const float value : weights_.floats) w.push_back(to_half(value));
    HalfProduct p = product(rows);
    p.w = w.data();
    p.inputs = kColumns;
    return done(products, p);
  }
  void expect_the_bits_of_expanded_ones(Products& products) {
    for (int64_t rows = 1; rows <= kMostRows; ++rows) {
      packed(products, rows);
      const std::vector<float> y = y_, expected = expanded(products, rows);
      ASSERT_EQ(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)), 0) << rows;
    }
  }
  // How many of some calls read weights as they are; they have been tried before.
  int reading(Products& products, int64_t rows) {
    packed(products, rows);
    test::FakePacked& fake = test::fake_blas().packed;
    fake.calls = fake.expanded = 0;
    for (int i = 0; i < 3; ++i) packed(products, rows);
    EXPECT_EQ(fake.calls + fake.expanded, 3);
    return fake.calls;
  }

  Half* room() {
    auto* const aligned = reinterpret_cast<std::byte*>(room_.data());
    return reinterpret_cast<Half*>(aligned + (256 - reinterpret_cast<uintptr_t>(aligned) % 256));
  }

  const Weights weights_ = random_weights(DType::kQ8_0, kOutputs, kColumns, 3);
  std::vector<Half> room_ = std::vector<Half>(kOutputs * kColumns + 128);
};

TEST_P(PackedChoice, ReadsFewRowsWeightsAsTheyAre) {
  Products products;
  expect_the_bits_of_expanded_ones(products);
  for (const int64_t rows : {1, 2, 3, 17, 64}) EXPECT_EQ(reading(products, rows), 3) << rows;
  EXPECT_EQ(reading(products, 65), 0);
}

TEST_P(PackedChoice, NotWhereABitIsDifferent) {
  test::fake_blas().packed.order = Order::kDown;
  Products products;
  expect_the_bits_of_expanded_ones(products);
  for (const int64_t rows : {1, 64}) EXPECT_EQ(reading(products, rows), 0) << rows;
}

TEST_P(PackedChoice, NotWhereBitsDependOnTheBatch) {
  test::fake_blas().packed.order = Order::kBySizeOfBatch;
  Products products;
  expect_the_bits_of_expanded_ones(products);
  EXPECT_EQ(reading(products, 17), 0);
}

TEST_P(PackedChoice, NotWhereItTakesLonger) {
  test::fake_blas().packed.seconds = 8.5;
  Products products;
  expect_the_bits_of_expanded_ones(products);
  EXPECT_EQ(reading(products, 7), 0);
  test::fake_blas().packed.seconds = 7.5;
  EXPECT_EQ(reading(products, 7), 0) << "it was chosen before";
  Products others;
  EXPECT_EQ(reading(others, 7), 3);
}

TEST_P(PackedChoice, NotWhereTheGpuCannot) {
  test::fake_blas().packed.works = false;
  Products products;
  expect_the_bits_of_expanded_ones(products);
  EXPECT_EQ(reading(products, 7), 0);
}

// Pieces of 16 bytes could not be copied.
TEST_P(PackedChoice, NotWhereRowsAreNotAligned) {
  Products products;
  const int before = test::fake_blas().packed.calls;
  const HalfProduct p = packed(products, 2, 0, 4);
  EXPECT_EQ(test::fake_blas().packed.calls, before);
  const std::vector<float> y = y_;
  HalfProduct all = p;
  all.w = room();
  all.y = y_.data();
  std::copy(before_.begin(), before_.end(), y_.begin());
  EXPECT_EQ(std::memcmp(done(products, all).data(), y.data(), y.size() * sizeof(float)), 0);
}

TEST_P(PackedChoice, LaterPanelsOfAMatrix) {
  const size_t element = GetParam() == Result::kReluHalf ? sizeof(Half) : sizeof(float);
  for (const double seconds : {1.0, 100.0}) {
    test::fake_blas().packed.seconds = seconds;
    Products products;
    for (const int64_t rows : {1, 5, 70}) {
      const std::vector<float> whole = expanded(products, rows);
      // In its place of the whole's result, or what that is added to is another.
      const size_t begin = 1 * kPanelRows * element;
      HalfProduct p = product(rows);
      p.inputs = kColumns;
      p.outputs -= kPanelRows;
      p.bias += kPanelRows;
      p.y = reinterpret_cast<std::byte*>(y_.data()) + begin;
      const PackedProduct later{p, weights_.view(), 1};
      products.multiply_packed(nullptr, {&later, 1}, room());
      for (int64_t row = 0; row < rows; ++row) {
        const size_t at = static_cast<size_t>(row * kOutputs) * element + begin;
        EXPECT_EQ(std::memcmp(reinterpret_cast<const std::byte*>(whole.data()) + at,
                              reinterpret_cast<const std::byte*>(y_.data()) + at,
                              static_cast<size_t>(p.outputs) * element),
                  0)
            << rows << " rows, " << row;
      }
    }
  }
}

// Of the same x, as many as the kernel takes; one that is expanded goes by itself.
TEST_P(PackedChoice, SeveralAtOnce) {
  if (GetParam() == Result::kReluHalf) return;  // its bias has one place
  constexpr int64_t kSome = 7;
  Products products;
  const auto part = [&](int64_t first, int64_t end) {
    HalfProduct p = product(kSome);
    p.inputs = kColumns;
    p.outputs = std::min(end * kPanelRows, kOutputs) - first * kPanelRows;
    p.bias += first * kPanelRows;
    p.y = y_.data() + first * kPanelRows;
    return PackedProduct{p, weights_.view(), first};
  };
  const std::vector<float> expected = expanded(products, kSome);
  test::FakePacked& fake = test::fake_blas().packed;
  for (const bool again : {false, true}) {
    fake.calls = fake.expanded = 0;
    const PackedProduct all[] = {part(0, 1), part(1, 2), part(2, 3)};
    products.multiply_packed(nullptr, all, room());
    EXPECT_EQ(std::memcmp(expected.data(), y_.data(), y_.size() * sizeof(float)), 0);
    if (again) {
      EXPECT_EQ(fake.calls, 1);
    }
  }
  // So many that not all go at once.
  const PackedProduct five[] = {part(0, 1), part(1, 2), part(1, 2), part(0, 1), part(2, 3)};
  if (GetParam() == Result::kFloat) {
    fake.calls = 0;
    products.multiply_packed(nullptr, five, room());
    EXPECT_EQ(std::memcmp(expected.data(), y_.data(), y_.size() * sizeof(float)), 0);
    EXPECT_EQ(fake.calls, 2);
  }
  // What does not go any more.
  fake.works = false;
  fake.expanded = 0;
  const PackedProduct all[] = {part(0, 1), part(1, 2), part(2, 3)};
  products.multiply_packed(nullptr, all, room());
  EXPECT_EQ(std::memcmp(expected.data(), y_.data(), y_.size() * sizeof(float)), 0);
  EXPECT_EQ(fake.expanded, 3);
}

TEST_P(PackedChoice, EachFormatByItself) {
  if (GetParam() == Result::kReluHalf) return;
  const Weights others = random_weights(DType::kQ4_0, kOutputs, kColumns, 4);
  test::FakePacked& fake = test::fake_blas().packed;
  const auto result = [&](Products& products) {
    std::vector<PackedProduct> all;
    const HalfProduct whole = product(7);
    for (const int64_t panel : {0, 1, 2}) {
      HalfProduct p = whole;
      p.inputs = kColumns;
      p.outputs = kPanelRows;
      p.bias += panel * kPanelRows;
      p.y = y_.data() + panel * kPanelRows;
      all.push_back({p, panel == 1 ? others.view() : weights_.view(), panel});
    }
    fake.calls = fake.expanded = 0;
    products.multiply_packed(nullptr, all, room());
    return y_;
  };
  Products products;
  result(products);
  const std::vector<float> got = result(products);
  EXPECT_EQ(fake.calls, 3);
  EXPECT_EQ(fake.expanded, 0);
  fake.works = false;
  const std::vector<float> expected = result(products);
  EXPECT_EQ(fake.expanded, 3);
  EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Results, PackedChoice,
                         testing::Values(Result::kFloat, Result::kAdded, Result::kReluHalf),
                         name_of);

}  // namespace
}  // namespace headrace
