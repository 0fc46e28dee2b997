// The reference expansion of stored rows, and the 16-bit conversions it stands on.
#include "tests/reference/dequantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/half.h"
#include "tests/reference/block_fields.h"

namespace headrace {
namespace {

// Other goldens of the same form (more blocks, another seed) can be named in the environment.
std::string golden_path() {
  const char* other = std::getenv("HEADRACE_DEQUANTIZE_GOLDEN");
  return other != nullptr ? other : HEADRACE_TEST_DATA "/dequantize.bin";
}

TEST(Dequantize, EqualsGgufPyBitForBit) {
  std::ifstream file(golden_path(), std::ios::binary);
  ASSERT_TRUE(file) << golden_path();
  std::set<std::string> seen;
  struct {
    char name[8];
    uint32_t elements;
    uint32_t bytes;
  } head;
  while (file.read(reinterpret_cast<char*>(&head), sizeof(head))) {
    const std::string name(head.name, strnlen(head.name, sizeof(head.name)));
    const DType* dtype = nullptr;
    for (const DType& candidate : all_dtypes()) {
      if (name == dtype_name(candidate)) dtype = &candidate;
    }
    ASSERT_NE(dtype, nullptr) << name;
    ASSERT_EQ(row_bytes(*dtype, head.elements), head.bytes) << name;
    std::vector<std::byte> stored(head.bytes);
    std::vector<uint32_t> expected(head.elements);
    ASSERT_TRUE(file.read(reinterpret_cast<char*>(stored.data()), head.bytes));
    ASSERT_TRUE(file.read(reinterpret_cast<char*>(expected.data()), head.elements * 4));
    std::vector<float> values(head.elements);
    reference::dequantize_row(*dtype, stored.data(), head.elements, values.data());
    for (uint32_t i = 0; i < head.elements; ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), expected[i]) << name << " element " << i;
    }
    seen.insert(name);
  }
  EXPECT_EQ(std::ssize(seen), std::count_if(all_dtypes().begin(), all_dtypes().end(), is_ggml));
}

TEST(FirstNotFinite, FindsEveryElementAndScale) {
  for (const DType dtype : all_dtypes()) {
    const DTypeInfo& info = dtype_info(dtype);
    const int64_t blocks = info.block_elements == 1 ? 67 : 3, cols = blocks * info.block_elements;
    std::vector<std::byte> row(row_bytes(dtype, cols), std::byte{0x3B});  // codes of all kinds
    EXPECT_EQ(first_not_finite(dtype, cols, row.data()), -1) << info.name;
    std::vector<int> fields = reference::f16_fields(dtype);
    if (fields.empty()) fields = {info.block_bytes - 2};  // the upper half, with the exponent
    for (int64_t block = 0; block < blocks; ++block) {
      for (const int field : fields) {
        const uint16_t exponent = dtype == DType::kF32 || dtype == DType::kBF16 ? 0x7F80 : 0x7C00;
        for (const uint16_t bits :
             {exponent, uint16_t(exponent | 0x8000), uint16_t(exponent + 1)}) {
          std::vector<std::byte> bad = row;
          std::memcpy(bad.data() + block * info.block_bytes + field, &bits, sizeof bits);
          EXPECT_EQ(first_not_finite(dtype, cols, bad.data()), block * info.block_elements)
              << info.name << ", byte " << field << " of block " << block;
        }
      }
    }
  }
}

float compiler_f16(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

TEST(Half, EveryF16EqualsTheCompilers) {
  for (uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float ours = f16_to_f32(half);
    const float theirs = compiler_f16(half);
    if (std::isnan(theirs)) {
      ASSERT_TRUE(std::isnan(ours)) << bits;
      ASSERT_EQ(std::signbit(ours), std::signbit(theirs)) << bits;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(ours), std::bit_cast<uint32_t>(theirs)) << bits;
      ASSERT_EQ(f32_to_f16(ours), half);
    }
  }
}

void expect_rounds_like_the_compiler(float value) {
  const uint16_t ours = f32_to_f16(value);
  const uint16_t theirs = std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  if (std::isnan(value)) {
    ASSERT_TRUE((ours & 0x7C00) == 0x7C00 && (ours & 0x3FF) != 0);
    ASSERT_EQ(ours >> 15, theirs >> 15);
  } else {
    ASSERT_EQ(ours, theirs) << std::hexfloat << value;
  }
}

// Rounding decides between neighbours at their midpoint: every midpoint, the floats beside it, and
// a stride through all floats.
TEST(Half, EveryRoundingDecisionEqualsTheCompilers) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const float low = f16_to_f32(static_cast<uint16_t>(bits));
    const float high = bits + 1 == 0x7C00 ? 65536.0f : f16_to_f32(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;
    for (float value : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, high)}) {
      expect_rounds_like_the_compiler(value);
      expect_rounds_like_the_compiler(-value);
    }
  }
  for (uint64_t bits = 0; bits <= 0xFFFFFFFFu; bits += 4093) {
    expect_rounds_like_the_compiler(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
}

TEST(Half, RoundedWithoutBranchesIsTheSame) {
  std::mt19937_64 random(1);
  const auto check = [](float value) {
    const float expected = f16_to_f32(to_half(value).bits), got = rounded_to_f16(value);
    ASSERT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(got)) << value;
  };
  for (int i = 0; i < 2'000'000; ++i) check(std::bit_cast<float>(static_cast<uint32_t>(random())));
  // Around every number of f16 and half way to the next.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float at = f16_to_f32(static_cast<uint16_t>(bits));
    const float half_way = at + 0.5f * (f16_to_f32(static_cast<uint16_t>(bits + 1)) - at);
    for (const float value : {at, half_way}) {
      check(value);
      check(std::nextafter(value, 1e9f));
      check(std::nextafter(value, -1e9f));
    }
  }
}

TEST(Half, Bf16IsTheUpperHalfRoundedToEven) {
  for (uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const uint16_t bf16 = static_cast<uint16_t>(bits);
    const float value = bf16_to_f32(bf16);
    ASSERT_EQ(std::bit_cast<uint32_t>(value), bits << 16);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
      continue;
    }
    ASSERT_EQ(f32_to_bf16(value), bf16);
    if ((bits & 0x7FFF) == 0x7F80) continue;  // infinity has nothing above
    const uint32_t tie = (bits << 16) | 0x8000;
    const uint32_t up = bits + 1;
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(tie - 1)), bits);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(tie)), (bits & 1) != 0 ? up : bits);
    ASSERT_EQ(f32_to_bf16(std::bit_cast<float>(tie + 1)), up);
  }
  // A NaN whose payload lies in the lower half only must not become infinite.
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7F800001u)))));
}

}  // namespace
}  // namespace headrace
